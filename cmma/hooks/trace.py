"""Read activations at named sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from cmma.errors import CmmaError
from cmma.hooks.ports import attach_reader
from cmma.models.base import MultimodalModel


class _Stopped(Exception):
    """Every requested site was read; carries the trace that asked to stop."""


class Trace(Mapping[str, Tensor]):
    """Record what flows through sites while the block runs.

    A trace sees activations after every Edit of the same site, whichever was entered first::

        with Trace(model, ["language.layers.6.resid_post", "vision.layers.3.mlp_out"]) as acts:
            model(**batch)
        acts["language.layers.6.resid_post"]                 # Float[B, S, d]

    While generating, a site is passed once per step: first with the whole prompt, then with one new token at a time
    (a cache holds the rest). `acts[site]` is the first pass, `acts.steps[site]` the list of all.

    Args:
        model: the model whose forward passes are watched.
        sites: names of sites. Raises UnknownSite.
        detach: cut the recorded tensors from the gradient graph.
        stop: end the block as soon as every site was read once, which skips the rest of the network. Nothing after
            the model's call inside the block is executed.
    """

    def __init__(
        self, model: MultimodalModel, sites: Sequence[str], detach: bool = True, stop: bool = False
    ) -> None:
        self._sites = [model.site(name) for name in dict.fromkeys(sites)]
        self._detach, self._stop = detach, stop
        self._handles: list[RemovableHandle] = []
        self.steps: dict[str, list[Tensor]] = {site.name: [] for site in self._sites}

    def __enter__(self) -> Trace:
        self._handles = [attach_reader(site, partial(self._read, site.name)) for site in self._sites]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        for handle in self._handles:
            handle.remove()
        return isinstance(error, _Stopped) and error.args[0] is self

    def __getitem__(self, site: str) -> Tensor:
        if not self.steps[site]:
            raise CmmaError(f"no forward pass went through {site} in this trace")
        return self.steps[site][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def _read(self, name: str, activation: Tensor) -> None:
        self.steps[name].append(activation.detach() if self._detach else activation)
        if self._stop and all(self.steps.values()):
            raise _Stopped(self)
