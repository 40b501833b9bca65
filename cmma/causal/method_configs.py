"""Options of single trace methods, mounted in `TraceConfig`. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import one_of, positive
from cmma.errors import ConfigError

PAIR_FACTORS = ("shape", "color", "size", "texture", "position", "presence")
"""Factors of the shapes world's image pairs, each a task of its own."""

COUNTERFACTUAL_SETS = ("relation", "referent", "count", "negation", "logic")
"""Pairs of questions about one image that differ in one constraint (docs/testbed.md)."""

MODALITIES = ("image", "text")
"""What is corrupted: the image (semantic image pairs) or the question (symmetric token replacement)."""


@dataclass(frozen=True)
class ConstraintWindowConfig:
    """MultimodalCausalTrace (Basu et al. 2024): how wide a window of layers must be to bring the answer back.

    Attributes:
        widths: numbers of layers restored together; those above the depth of the stream are left out.
        one: counterfactual sets whose questions hold one constraint, which is replaced.
        two: sets whose questions hold two constraints, one of which is replaced.
        shares: shares of the total effect; for each the smallest width that recovers it is looked for.
    """

    widths: list[int] = field(default_factory=lambda: [1, 3, 6, 9])
    one: list[str] = field(default_factory=lambda: ["count"])
    two: list[str] = field(default_factory=lambda: ["referent", "relation"])
    shares: list[float] = field(default_factory=lambda: [0.5, 0.9])

    def __post_init__(self) -> None:
        for width in self.widths:
            positive("trace.constraint_window.widths", width)
        for kind in (*self.one, *self.two):
            one_of("trace.constraint_window.one, two", kind, COUNTERFACTUAL_SETS)
        if not self.widths or not (self.one or self.two):
            raise ConfigError("trace.constraint_window needs at least one width, and a set in `one` or `two`")


@dataclass(frozen=True)
class UniversalHeadsConfig:
    """Heads that matter in every task and for either corruption (NOTICE; Golovanevsky et al. 2024).

    Attributes:
        tasks: factors of the image pairs, each a task. In each the questions of one half of the pairs have their image
            swapped and those of the other half a token, so that the two modalities share no sample.
        n_sigmas: a head is important in a task where its |recovery| is at least mean + n_sigmas · σ over the heads.
        min_tasks: tasks in which a universal head is important, in both modalities; 0 = all of them.
        per_task: pairs per task and modality, from the first.
        n_permutations: draws of the chance overlap.
    """

    tasks: list[str] = field(default_factory=lambda: list(PAIR_FACTORS))
    n_sigmas: float = 2.0
    min_tasks: int = 0
    per_task: int = 24
    n_permutations: int = 10_000

    def __post_init__(self) -> None:
        for task in self.tasks:
            one_of("trace.universal_heads.tasks", task, PAIR_FACTORS)
        for name in ("n_sigmas", "per_task", "n_permutations"):
            positive(f"trace.universal_heads.{name}", getattr(self, name))
        if not 0 <= self.min_tasks <= len(self.tasks) or not self.tasks:
            raise ConfigError(
                f"trace.universal_heads.min_tasks={self.min_tasks} must lie between 0 and the number of tasks, "
                f"{len(self.tasks)}"
            )
