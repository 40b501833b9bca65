"""What every adapter offers: named sites, batches, token modalities, activation records.

An adapter (one file per family) is a table of sites plus the few facts that differ between families. Everything
downstream (caching, hooks, tracing, interventions, graphs) sees only the class below.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cmma.data.samples import Sample
from cmma.errors import CmmaError
from cmma.modality import Modality
from cmma.models.sites import Attention, RecordSite, Site, UnknownSite
from cmma.models.spec import ModelSpec


class Records(NamedTuple):
    """Activation records of one batch at one layer, padded.

    Attributes:
        vectors: Float[B, S, D], D = `record_width`.
        modality: int8[B, S], `Modality` codes; DROPPED rows are not records.
        position: int64[B, S], token index in its own stream or tower; -1 for joint views.
    """

    vectors: Tensor
    modality: Tensor
    position: Tensor


class Batch(dict[str, Tensor]):
    """Model inputs by name (so `model(**batch)` works), one row per sample, with what scoring needs beside them.

    Attributes:
        prompt_end: int64[B], column of the last prompt token (generative models; None otherwise).
        answer_mask: bool[B, S], the teacher-forced answer tokens (generative models; None otherwise).
    """

    prompt_end: Any
    answer_mask: Any

    def __init__(
        self, inputs: Mapping[str, Tensor], prompt_end: Tensor | None = None, answer_mask: Tensor | None = None
    ) -> None:
        super().__init__(inputs)
        self.prompt_end, self.answer_mask = prompt_end, answer_mask

    def _map(self, function: Any) -> Batch:
        extras = [None if extra is None else function(extra) for extra in (self.prompt_end, self.answer_mask)]
        return Batch({name: function(value) for name, value in self.items()}, *extras)

    @classmethod
    def cat(cls, batches: Sequence[Batch]) -> Batch:
        """The rows of batches of equal shapes, one batch after the other."""
        def joint(parts: Sequence[Any]) -> Any:
            return None if parts[0] is None else torch.cat(list(parts))

        inputs = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        return cls(inputs, *(joint([getattr(b, extra) for b in batches]) for extra in ("prompt_end", "answer_mask")))

    def rows(self, index: Tensor | Sequence[int]) -> Batch:
        """The samples `index`, in that order; repeating an index repeats the sample."""
        index = torch.as_tensor(index, dtype=torch.long)
        return self._map(lambda value: value[index.to(value.device)])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return self._map(lambda value: value.to(device))


class MultimodalModel(ABC):
    """One loaded model behind one interface.

    Attributes:
        spec: what it was loaded from.
        module: the network itself; always in evaluation mode, parameters frozen.
        kind: "generative" (answers in text), "dual_encoder" (scores image against text) or "diffusion" (makes images).
        streams: towers whose positions can be traced and patched, the usual one first.
        answer_stream: generative: the one of them that writes the answer, read by `logit_lens`.
        image_site: the image's embeddings, as the rest of the network gets them: where noise corrupts the image (of a
            model that makes images: the prompt's embeddings, which are its input).
        unreached: tower → towers that nothing in it can change; their finished state can be kept while it is patched.
        streams_apart: no record stream of a layer reads another one at or below that layer, so all of them can be given
            together. False where the text tower reads the finished image (cross-attention).
        attentions: attention modules that can be masked pair by pair, by name.
        prefix_stream: the stream that is causal and takes keys and values of earlier positions; empty = none does.
        n_layers: depth of the record stream; layers are numbered from 0.
        tokenizer: of its texts: transformers' or open_clip's.
    """

    kind: Literal["generative", "dual_encoder", "diffusion"]
    streams: tuple[str, ...]
    answer_stream: str = ""
    image_site: str
    unreached: Mapping[str, tuple[str, ...]] = {}
    streams_apart: bool = True
    prefix_stream: str = ""
    tokenizer: Any

    def __init__(
        self, spec: ModelSpec, module: nn.Module, sites: Sequence[Site], n_layers: int,
        attentions: Sequence[Attention] = (),
    ) -> None:  # fmt: skip
        self.spec, self.n_layers = spec, n_layers
        self.attentions = {attention.name: attention for attention in attentions}
        self.module: Any = module.eval().requires_grad_(False)
        self._sites = {site.name: site for site in sites}

    @property
    def family(self) -> str:
        """Name of the adapter."""
        return self.spec.family

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return next(self.module.parameters()).dtype

    def site(self, name: str) -> Site:
        """The site called `name`. Raises UnknownSite with the nearest names."""
        if name not in self._sites:
            near = difflib.get_close_matches(name, self._sites, n=4, cutoff=0.0)
            raise UnknownSite(f"{self.spec.name} has no site {name!r}; the nearest are {', '.join(near)}")
        return self._sites[name]

    def n_heads(self, site: str) -> int:
        """Number of attention heads whose outputs lie side by side in a site `heads` or `cross_heads`.

        Raises:
            UnknownSite: no such site; some attentions (open_clip's) are one function, inside which no head can be seen.
        """
        raise UnknownSite(f"{self.spec.name} has no sites of single heads, and so none called {site!r}")

    def site_names(self) -> list[str]:
        """Every site, in table order."""
        return list(self._sites)

    @property
    def captions(self) -> bool:
        """Whether it writes captions: generative, with an instruction that asks for one (`spec.prompt`)."""
        return self.kind == "generative" and bool(self.spec.prompt)

    def entry(self, site: str) -> nn.Module:
        """The module whose call begins a pass through `site`; what it is given tells the modalities there."""
        return self.module

    def __call__(self, **batch: Any) -> Any:
        """One forward pass; the module's own output object. Gradients are the caller's choice."""
        return self.module(**batch)

    @abstractmethod
    def collate(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        padding: Literal["right", "left"] = "right",
    ) -> Batch:
        """Preprocess samples into one batch on the model's device.

        Args:
            samples: images (and, for dual encoders, captions).
            texts: generative: the question or instruction, default `spec.prompt`; dual encoder: default the captions.
            answers: generative: teacher-forced answers appended to the prompt.
            padding: side of the padding; "left" for `generate`.
        """

    @abstractmethod
    def token_modality(self, batch: Mapping[str, Tensor]) -> Tensor:
        """int8[B, S]: modality of every position of the text stream of this forward pass (`Modality` codes)."""

    @abstractmethod
    def site_modality(self, site: str, batch: Mapping[str, Tensor], rows: int, length: int) -> Tensor:
        """int8[rows, length]: modality of every position of the activation at `site` (pooled sites: length 1)."""

    @abstractmethod
    def record_sites(self, layer: int) -> tuple[RecordSite, ...]:
        """Sites whose activations make up the records of `layer`, and where each goes in the record vector."""

    def record_blocks(self, layer: int) -> tuple[int, ...]:
        """Widths of the blocks of a record vector: (d,) for one stream, (d_vision, d_text) for pair views."""
        return tuple(site.width for site in self.record_sites(layer))

    def record_width(self, layer: int) -> int:
        """Width of a record vector."""
        return sum(self.record_blocks(layer))

    @abstractmethod
    def records(self, acts: Mapping[str, Tensor], batch: Mapping[str, Tensor], layer: int) -> Records:
        """Arrange traced activations of the sites `record_sites(layer)` as padded records."""

    def context(self, acts: Mapping[str, Tensor], batch: Mapping[str, Tensor], layer: int, n: int = 4) -> Tensor:
        """Pooled context vectors per sample and modality, for the cross-modal attention of the M-SAE.

        Each is the mean over one of `n` contiguous, near-equal spans of that modality's records; with fewer than `n`
        records the remaining vectors are zero.

        Returns:
            float32[B, 2, n, D]: [:, 0] visual, [:, 1] textual.
        """
        return span_means(*self.records(acts, batch, layer)[:2], n)

    @abstractmethod
    def pooled_position(self, batch: Batch, modality: Modality) -> Tensor:
        """int64[B]: the position that summarises a sample: CLS / EOT (dual encoder), last prompt token (generative)."""

    @abstractmethod
    def image_grid(self, batch: Mapping[str, Tensor], layer: int | None = None) -> tuple[int, int]:
        """(rows, columns) of the patches that see the whole image, in the records of `layer` where layers differ."""

    @abstractmethod
    def image_positions(self, batch: Mapping[str, Tensor], layer: int | None = None) -> Tensor:
        """int64[B, rows · columns]: positions of those patches in the stream of the visual records, row by row."""

    # What only one kind of model does ---------------------------------------------------------------------------------

    def generate(self, batch: Batch, max_new_tokens: int, **options: Any) -> list[str]:
        """Generative: greedy continuation of each prompt, without special tokens (batches padded on the left)."""
        raise CmmaError(f"{self.spec.name} is a {self._kind_name}: it scores text and cannot generate it")

    def after_prefix(self, batch: Batch, start: int) -> Batch:
        """Models with a `prefix_stream`: the inputs of a pass that begins at a position, those before it cached."""
        raise CmmaError(f"{self.spec.name}: no stream of it continues from keys and values of earlier positions")

    def answer_ids(self, answer: str) -> list[int]:
        """Generative: token ids of an answer as it follows the prompt."""
        raise CmmaError(f"{self.spec.name} is a {self._kind_name}: it scores whole texts, not answers")

    def prompt_logits(self, batch: Batch) -> Tensor:
        """Generative: logits after the prompt, Float[B, vocabulary]."""
        raise CmmaError(f"{self.spec.name} is a {self._kind_name}: it has no logits of a next token")

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Generative: what a readout of teacher-forced answers needs, from one forward pass.

        Returns:
            Logits Float[B, C, V] that predict C columns, the ids int64[B, C] in them, and bool[B, C], which of these
            belong to the answer. C covers every answer of the batch, and little more.
        """
        raise CmmaError(f"{self.spec.name} is a {self._kind_name}: it scores whole texts, not answers")

    def unembedding(self) -> Tensor | None:
        """Float[V, D]: reads a record vector out as logits of tokens; None where records are not in that space."""
        return None

    def logit_lens(self, states: Tensor) -> Tensor:
        """Generative: logits of the next token if `answer_stream` ended in these states: [..., D] → [..., V]."""
        raise CmmaError(f"{self.spec.name} is a {self._kind_name} model: its states are not read out as words")

    def similarity(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Dual encoder: cosine of every image with every text of the batch, Float[B images, B texts]."""
        raise CmmaError(f"{self.spec.name} is a {self._kind_name} model: it has no embeddings to compare")

    def denoising_error(self, batch: Batch) -> Tensor:
        """Diffusion: mean squared error of the prediction under each sample's text, Float[B]; differentiable."""
        raise CmmaError(f"{self.spec.name} is a {self._kind_name} model: it denoises nothing")

    @property
    def _kind_name(self) -> str:
        return self.kind.replace("_", " ")


def span_means(vectors_BSD: Tensor, modality_BS: Tensor, n: int) -> Tensor:
    """Means over `n` near-equal spans of each sample's visual and textual records: float32[B, 2, n, D]."""
    weights = []
    for modality in (Modality.VISUAL, Modality.TEXTUAL):
        member_BS = modality_BS == modality
        count_B1 = member_BS.sum(1, keepdim=True)
        rank_BS = member_BS.cumsum(1) - 1
        span_BS = (rank_BS * count_B1.clamp(max=n)).div(count_B1.clamp(min=1), rounding_mode="floor")
        spans_BSn = (span_BS[..., None] == torch.arange(n, device=span_BS.device)) & member_BS[..., None]
        weights.append(spans_BSn / spans_BSn.sum(1, keepdim=True).clamp(min=1))
    weights_BMnS = torch.stack(weights, dim=1).transpose(2, 3)
    return torch.einsum("bmns,bsd->bmnd", weights_BMnS, vectors_BSD.float())
