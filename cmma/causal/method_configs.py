"""Options of single trace methods, mounted in `TraceConfig`. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least
from cmma.errors import ConfigError


@dataclass(frozen=True)
class KnockoutConfig:
    """Attention knockout (information flow).

    Attributes:
        flows: "source->target" groups whose attention is blocked, such as "image->question"; empty = every flow that
            the model has (docs/causal.md).
        window: layers blocked together, centred on each layer; 0 = 9 of 32, in proportion to the model's depth.
    """

    flows: list[str] = field(default_factory=list)
    window: int = 0

    def __post_init__(self) -> None:
        at_least("trace.knockout.window", self.window, 0)
        for flow in self.flows:
            if flow.count("->") != 1:
                raise ConfigError(f"trace.knockout.flows holds {flow!r}; a flow is source->target: image->question")
