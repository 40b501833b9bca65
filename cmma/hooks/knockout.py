"""Block attention between chosen pairs of positions (attention knockout; Geva et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cmma.errors import CmmaError
from cmma.hooks.ports import first, with_first
from cmma.models.base import MultimodalModel
from cmma.models.sites import Attention, UnknownSite


class Knockout:
    """Within the block, blocked pairs have no attention, and the other weights of the position sum to one::

        blocked_BQK = torch.zeros(1, 70, 70, dtype=torch.bool)
        blocked_BQK[:, 69, 10:46] = True                     # the last token reads nothing from the image
        with Knockout(model, {"language.layers.6.attention": blocked_BQK}):
            model(**batch)

    A position that is left with nothing gets what attention over zero values gives: the bias of the output projection.
    The same under sdpa and eager attention. Passes over whole sequences only: a cached decoding step is refused.

    Args:
        pairs: name of an attention module (`model.attentions`) → bool[B, Q, K], True where query position q of row b
            may not attend to key position k.

    Raises:
        UnknownSite: a module that the model does not have, or that takes no mask.
    """

    def __init__(self, model: MultimodalModel, pairs: Mapping[str, Tensor]) -> None:
        if unknown := [name for name in pairs if name not in model.attentions]:
            kinds = dict.fromkeys(f"{each.row.queries}.layers.*.{name.split('.')[-1]}"
                                  for name, each in model.attentions.items())
            has = f"it has {', '.join(kinds)}" if kinds else "it has none that can"
            raise UnknownSite(f"{model.spec.name} has no attention {unknown[0]!r} that can be masked; {has}")
        self._masks = [_Mask(model.attentions[name], blocked_BQK) for name, blocked_BQK in pairs.items()]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Knockout:
        for mask in self._masks:
            module = mask.attention.module
            self._handles.append(module.register_forward_pre_hook(mask.narrow, with_kwargs=True))
            self._handles.append(module.register_forward_hook(mask.silence))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Mask:
    """The hooks of one attention module."""

    def __init__(self, attention: Attention, blocked_BQK: Tensor) -> None:
        self.attention, self.blocked_BQK = attention, blocked_BQK
        self.nothing_BQ: Tensor | None = None

    def narrow(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Take the blocked pairs out of the mask that the module is given."""
        row = self.attention.row
        acts_BQD = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if acts_BQD.shape[:2] != self.blocked_BQK.shape[:2]:
            raise CmmaError(
                f"knockout at {self.attention.name}: a pass over {tuple(acts_BQD.shape[:2])} rows × positions, and "
                f"pairs for {tuple(self.blocked_BQK.shape[:2])}; whole sequences are masked, not decoding steps"
            )
        blocked_BHQK = self.blocked_BQK.to(acts_BQD.device)[:, None]
        mask, nothing_BHQ = narrowed(kwargs.get(row.mask), blocked_BHQK, row.causal, acts_BQD.dtype)
        if row.per_head:
            mask = mask.expand(-1, module.num_heads, -1, -1).flatten(0, 1)
        self.nothing_BQ = nothing_BHQ[:, 0]
        return args, kwargs | {row.mask: mask}

    def silence(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Positions with nothing to attend to: their heads are zero."""
        assert self.nothing_BQ is not None
        if not self.nothing_BQ.any():
            return None
        acts_BQD = first(output)
        projection: Any = module.get_submodule(self.attention.row.projection) if self.attention.row.projection else None
        bias_D = getattr(projection, "bias", None)
        silent = acts_BQD.new_zeros(()) if bias_D is None else bias_D
        return with_first(output, torch.where(self.nothing_BQ[..., None], silent, acts_BQD))


def narrowed(given: Tensor | None, blocked: Tensor, causal: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A mask without the blocked pairs, and which queries [B, 1, Q] are left with nothing.

    transformers gives sdpa no mask where nothing is padded, else a bool one (True = attend), and eager attention an
    additive one; an additive mask serves all of them where there was none. Queries that are left with nothing keep
    their mask, since a softmax needs something to normalise: what they read has to be thrown away.

    Args:
        given: None, bool (True = attend) or additive (0 = attend); it broadcasts to the shape of `blocked`.
        blocked: bool [B, 1, Q, K].
        causal: what None stands for.
        dtype: of a mask that is made anew.
    """
    if given is None:
        open_ = torch.ones(blocked.shape[-2:], dtype=torch.bool, device=blocked.device)
        open_ = open_.tril() if causal else open_
    else:
        open_ = given if given.dtype == torch.bool else given == 0
    open_ = open_.expand(blocked.shape)
    nothing = open_.any(dim=-1) & ~(open_ & ~blocked).any(dim=-1)
    kept = open_ & ~(blocked & ~nothing[..., None])
    if given is None:
        given = torch.zeros((), dtype=dtype, device=blocked.device)
    elif given.dtype == torch.bool:
        return kept, nothing
    # Where the model itself allows no pair (padding), its own numbers stay.
    closed = ~kept & open_.any(dim=-1, keepdim=True)
    return given.expand(blocked.shape).masked_fill(closed, torch.finfo(given.dtype).min), nothing
