"""Write activations at named sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cmma.errors import CmmaError, ConfigError
from cmma.hooks.ports import attach_rewrite
from cmma.modality import Modality
from cmma.models.base import MultimodalModel

TOKENS = ("all", "visual", "textual", "every")
PHASES = ("all", "prefill", "decode")


class Where(NamedTuple):
    """Where the activations handed to an edit come from.

    Attributes:
        batch_index: int64[N], row of the site's activation: the sample (LLaVA-NeXT's vision tower: the image tile).
        position: int64[N], column in the whole sequence, cached tokens counted.
        step: 0 in the prefill, t for the t-th generated token that is fed back.
    """

    batch_index: Tensor
    position: Tensor
    step: int


EditFunction = Callable[[Tensor, Tensor, Where], Tensor]


@dataclass(frozen=True)
class TokenEdit:
    """What to do with which tokens, wherever it is applied.

    Attributes:
        fn: (acts_ND, modality_N, where) → acts_ND: new activations of the selected tokens. May return any floating
            type and device; gradients flow through.
        tokens: "all" records (everything but padding, BOS and a dropped system prompt), those that are "visual" or
            "textual", "every" position without exception, columns of the sequence (negative ones count back from the
            end of the prefill), or a mask bool[B, S] over the prefill's columns.
        phase: "prefill" = passes over a prompt, "decode" = one new token after a cache, "all" = both.
    """

    fn: EditFunction
    tokens: Literal["all", "visual", "textual", "every"] | Sequence[int] | Tensor = "all"
    phase: Literal["all", "prefill", "decode"] = "all"

    def __post_init__(self) -> None:
        if isinstance(self.tokens, str) and self.tokens not in TOKENS:
            raise ConfigError(f"tokens={self.tokens!r} is unknown; valid are {', '.join(TOKENS)}, positions, or a mask")
        if self.phase not in PHASES:
            raise ConfigError(f"phase={self.phase!r} is unknown; valid are {', '.join(PHASES)}")


class Edit:
    """Apply a TokenEdit at one site while the block runs; nested edits of a site apply in the order of entry::

        zero = TokenEdit(lambda acts_ND, modality_N, where: torch.zeros_like(acts_ND), tokens="visual")
        with Edit(model, "language.layers.6.resid_post", zero):
            model.generate(batch, max_new_tokens=20)

    Only the selected tokens are passed to the function; they are written back out of place, in the activation's own
    type and device. The hooks are released when the block ends, also by an exception.
    """

    def __init__(self, model: MultimodalModel, site: str, edit: TokenEdit) -> None:
        self._model, self._site, self._edit = model, model.site(site), edit
        self._release: list[Callable[[], None]] = []
        self._inputs: dict[str, Any] = {}
        self._cached = self._prompt = 0

    def __enter__(self) -> Edit:
        watch = self._model.entry(self._site.name).register_forward_pre_hook(self._begin, with_kwargs=True)
        self._release = [watch.remove, attach_rewrite(self._site, self._rewrite)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for release in self._release:
            release()
        self._inputs = {}

    def _begin(self, module: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Note what the pass that begins is given, and how many columns its cache already holds."""
        cache = inputs.get("past_key_values")
        self._inputs, self._cached = inputs, 0 if cache is None else cache.get_seq_length()

    def _rewrite(self, activation: Tensor) -> Tensor:
        acts_BSD = activation if activation.ndim == 3 else activation[:, None]
        rows, length = acts_BSD.shape[:2]
        decoding = self._cached > 0 and length == 1
        if not decoding:
            self._prompt = self._cached + length
        if self._edit.phase not in ("all", "decode" if decoding else "prefill"):
            return activation

        modality_BS = self._model.site_modality(self._site.name, self._inputs, rows, length).to(activation.device)
        modality_BS = modality_BS.expand(rows, -1)  # of a pass that rows join later (cmma.hooks.joined), one is known
        chosen_BS = self._choose(modality_BS)
        row_N, column_N = chosen_BS.nonzero(as_tuple=True)
        if len(row_N) == 0:
            return activation
        acts_ND = acts_BSD[row_N, column_N]
        where = Where(row_N, column_N + self._cached, self._cached - self._prompt + 1 if decoding else 0)
        new_ND = self._edit.fn(acts_ND, modality_BS[row_N, column_N], where)
        if new_ND.shape != acts_ND.shape:
            raise CmmaError(f"edit of {self._site.name} returned {tuple(new_ND.shape)} for {tuple(acts_ND.shape)}")
        return acts_BSD.index_put((row_N, column_N), new_ND.to(acts_BSD)).view_as(activation)

    def _choose(self, modality_BS: Tensor) -> Tensor:
        """bool[B, S]: the tokens of this pass that the edit asks for."""
        tokens, length = self._edit.tokens, modality_BS.shape[1]
        if isinstance(tokens, str):
            masks = {
                "all": modality_BS >= 0,
                "every": torch.ones_like(modality_BS, dtype=torch.bool),
                "visual": modality_BS == Modality.VISUAL,
                "textual": modality_BS == Modality.TEXTUAL,
            }
            return masks[tokens]
        if isinstance(tokens, Tensor) and tokens.dtype == torch.bool:
            ahead = tokens[:, self._cached : self._cached + length].to(modality_BS.device)
            return torch.nn.functional.pad(ahead, (0, length - ahead.shape[1]))
        wanted = torch.as_tensor(tokens, dtype=torch.long, device=modality_BS.device)
        wanted = torch.where(wanted < 0, wanted + self._prompt, wanted)
        column_S = torch.arange(length, device=modality_BS.device) + self._cached
        return torch.isin(column_S, wanted).expand_as(modality_BS)
