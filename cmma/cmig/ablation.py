"""Ablate sets of dictionary features at one layer, many sets per forward pass.

Five things make it fast, none of them an approximation:
- latents and the layer's activations are computed once per sample; an ablation only adds −Σ a_i f_i to them;
- a feature that is silent on a sample changes nothing there, so only the distinct *effective* sets of a sample run;
- rows (sample × set) fill whole batches, whatever sample they belong to;
- a forward pass resumes at the layer: what lies below it cannot change;
- in a causal tower it begins at the first token that is edited: keys and values of those before are the clean run's.

Where one stream of the records reads another (`MultimodalModel.streams_apart`), the first three do not hold: what the
question encoder holds, and which features are active there, depends on what was ablated in the image. Passes are whole
then, every row runs, and latents are computed inside the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout
from cmma.cmig.streams import MODALITIES, Stream, read_streams
from cmma.console import progress
from cmma.hooks.edit import Edit, TokenEdit, Where
from cmma.hooks.joined import joined, keeping_prefix
from cmma.hooks.resume import AGREE, BLOCK, can_resume, inputs_above, resumed
from cmma.hooks.streams import splice
from cmma.hooks.trace import Trace
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


class FeatureAblation:
    """The readout of every sample of a batch under ablations: the `ablate` that `pairwise_effects` asks for.

    Args:
        model: the network.
        sae: its dictionary at `layer`; the reconstruction error passes through untouched.
        layer: its records are edited (see `MultimodalModel.record_sites`).
        batch, queries: the samples, collated, and what is asked about each.
        features: the features that may be ablated.
        readout: one number per row.
        tokens: "all" records, or only "visual" or "textual" ones.
        rows_at_once: rows of one forward pass.

    Attributes:
        resumes: whether passes start at the layer. Where a resumed clean pass does not reproduce the whole one, the
            whole network runs each time: slower, equally exact.
        skips_prefix: whether they begin at the first edited token, likewise.
        active_BK: whether ablating a feature can change a sample.
        rows_run, rows_asked: forward rows computed so far, and those that one row per set and sample would have taken.
    """

    def __init__(
        self,
        model: MultimodalModel,
        sae: SparseAutoencoder,
        layer: int,
        batch: Batch,
        queries: Sequence[Query],
        features: Sequence[int],
        readout: Readout,
        tokens: str = "all",
        rows_at_once: int = 256,
    ) -> None:
        self.model, self.layer, self.queries, self.readout = model, layer, queries, readout
        self.sae, self.tokens = sae, tokens
        self.features, self.rows_at_once = list(features), rows_at_once
        self._chosen = torch.as_tensor(self.features, device=model.device)
        self._directions_MKR = torch.stack([sae.directions(modality)[self._chosen] for modality in MODALITIES])
        self.rows_run = self.rows_asked = 0
        sites = [place.site for place in model.record_sites(layer)]
        with torch.no_grad(), Trace(model, sites) as acts:
            whole_B = readout(batch, queries)
        self._streams = read_streams(model, sae, layer, acts, batch, self.features, tokens)
        active_BK = torch.stack([stream.active_BK for stream in self._streams]).any(dim=0)
        self.active_BK = active_BK.cpu().numpy() if model.streams_apart else np.ones(active_BK.shape, dtype=bool)
        self._batch, self.resumes, self.skips_prefix = batch, False, False
        if can_resume(model, layer):
            self._batch, self.resumes = inputs_above(model, layer, batch), True
            self.resumes = self._agrees(whole_B)
        if self.resumes and (match := BLOCK.match(sites[0])) and match["tower"] == f"{model.prefix_stream}.layers.":
            self._tower = match["tower"]
            self._first_BK = _first_positions(self._streams[0]).cpu()
            with torch.no_grad(), keeping_prefix(model) as self._prefix:
                readout(batch, queries)
            self.skips_prefix = True
            self.skips_prefix = self._agrees(whole_B)
        if not self.resumes:
            self._batch = batch

    def _agrees(self, whole_B: Tensor) -> bool:
        """Whether clean passes, shortened as they now are, give what whole ones do."""
        every_B = torch.arange(len(whole_B), device=self.model.device)
        again_B = self._run(every_B, torch.zeros(len(every_B), len(self.features), device=self.model.device))
        return bool((again_B - whole_B).abs().max() <= AGREE * whole_B.abs().max())

    def __call__(self, sets: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        """Readout [sets, samples] with each set of features at zero; `()` is the clean run."""
        column = {feature: k for k, feature in enumerate(self.features)}
        off_AK = np.zeros((len(sets), len(self.features)), dtype=bool)
        for row, members in enumerate(sets):
            off_AK[row, [column[feature] for feature in members]] = True

        row_R, off_RK, slot_AB = self._effective(off_AK)
        values_R = torch.empty(len(row_R), dtype=torch.float64)
        with progress("Measuring interactions", total=len(row_R)) as bar:
            for chunk_R in self._order(row_R, off_RK).split(self.rows_at_once):
                rows, off = row_R[chunk_R].to(self.model.device), off_RK[chunk_R].to(self.model.device)
                values_R[chunk_R] = self._run(rows, off).double().cpu()
                bar.advance(len(chunk_R))
        self.rows_run += len(row_R)
        self.rows_asked += slot_AB.size
        return values_R.numpy()[slot_AB]

    def _effective(self, off_AK: NDArray[np.bool_]) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """The distinct rows that have to run: sample [R], features off [R, K], and the row of each (set, sample)."""
        masks, slots, first = [], [], 0
        for active_K in self.active_BK:
            packed_AP = np.packbits(off_AK & active_K, axis=1)
            mask_UP, slot_A = np.unique(packed_AP, axis=0, return_inverse=True)
            masks.append(mask_UP)
            slots.append(first + slot_A.reshape(-1))
            first += len(mask_UP)
        row_R = np.repeat(np.arange(len(self.queries)), [len(mask) for mask in masks])
        off_RK = np.unpackbits(np.concatenate(masks), axis=1, count=off_AK.shape[1])
        return torch.from_numpy(row_R), torch.from_numpy(off_RK).float(), np.stack(slots, axis=1)

    @torch.no_grad()
    def states(self, row_R: Tensor, off_RK: Tensor, sites: Sequence[str]) -> tuple[dict[str, Tensor], Batch]:
        """Activations at sites above the layer under ablations, [R, S, D] each, and the inputs of these rows.

        The pass ends at the last of the sites.
        """
        batch = self._batch.rows(row_R)
        with ExitStack() as stack:
            acts = stack.enter_context(Trace(self.model, list(sites), stop=True))
            if self.model.streams_apart:
                edited = {stream.site: stream.ablated(row_R, off_RK) for stream in self._streams}
                stack.enter_context(self._given(edited))
            else:
                stack.enter_context(splice(self.model, self.layer, self._inside(off_RK)))
            self.model(**batch)
        return {site: acts[site] for site in sites}, batch

    def slopes(self, row_R: Tensor, off_RK: Tensor) -> Tensor:
        """What ablating each feature as well would add to the readout, to first order: [R, K].

        −Σ_tokens a_j f_j · ∂E/∂h at do(off = 0), for every feature j from one backward pass. Entries of features that
        are off already mean nothing.

        Args:
            row_R: samples. off_RK: float, 1 where a feature is ablated.
        """
        batch, queries = self._batch.rows(row_R), [self.queries[row] for row in row_R.tolist()]
        with torch.enable_grad():
            if not self.model.streams_apart:
                return self._slopes_inside(batch, queries, off_RK)
            edited = {stream.site: stream.ablated(row_R, off_RK).requires_grad_() for stream in self._streams}
            with self._given(edited):
                total = self.readout(batch, queries).sum()
            gradients = torch.autograd.grad(total, list(edited.values()))
        each = zip(self._streams, gradients, strict=True)
        return -torch.stack([stream.along(row_R, gradient_RSD) for stream, gradient_RSD in each]).sum(dim=0)

    def _slopes_inside(self, batch: Batch, queries: Sequence[Query], off_RK: Tensor) -> Tensor:
        """The same where latents depend on what is ablated elsewhere: they and the gradient are those of the pass."""
        seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        ablate = self._inside(off_RK)

        def with_leaf(acts_NR: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            leaf_NR = torch.zeros_like(acts_NR, requires_grad=True)
            with torch.no_grad():
                latents_NK = self.sae.encode(acts_NR, modality_N)[:, self._chosen]
            seen.append((latents_NK, leaf_NR, modality_N, where.batch_index))
            return ablate.fn(acts_NR, modality_N, where) + leaf_NR

        with splice(self.model, self.layer, TokenEdit(with_leaf, cast(Any, self.tokens), "prefill")):
            total = self.readout(batch, queries).sum()
        gradients = torch.autograd.grad(total, [leaf_NR for _, leaf_NR, _, _ in seen])
        slopes_RK = torch.zeros_like(off_RK)
        for (latents_NK, _, modality_N, row_N), gradient_NR in zip(seen, gradients, strict=True):
            for modality, direction_KR in zip(MODALITIES, self._directions_MKR, strict=True):
                along_NK = (gradient_NR * (modality_N == modality)[:, None]) @ direction_KR.T
                slopes_RK.index_add_(0, row_N, -(latents_NK * along_NK).to(slopes_RK.dtype))
        return slopes_RK

    def _order(self, row_R: Tensor, off_RK: Tensor) -> Tensor:
        """The order in which rows run: those together that begin at like positions."""
        if not self.skips_prefix:
            return torch.arange(len(row_R))
        return self._first_of(row_R, off_RK).argsort(descending=True, stable=True)

    def _first_of(self, row_R: Tensor, off_RK: Tensor) -> Tensor:
        """The first position that each row edits, int64[R]; the number of positions where it edits none."""
        end = self._streams[0].acts_BSD.shape[1]
        return torch.where(off_RK.cpu() != 0, self._first_BK[row_R.cpu()], end).amin(dim=1)

    @torch.no_grad()
    def _run(self, row_R: Tensor, off_RK: Tensor) -> Tensor:
        batch, queries = self._batch.rows(row_R), [self.queries[row] for row in row_R.tolist()]
        if not self.model.streams_apart:
            with splice(self.model, self.layer, self._inside(off_RK)):
                return self.readout(batch, queries)
        if self.skips_prefix:
            return self._run_after_prefix(batch, queries, row_R, off_RK)
        with self._given({stream.site: stream.ablated(row_R, off_RK) for stream in self._streams}):
            return self.readout(batch, queries)

    def _run_after_prefix(self, batch: Batch, queries: Sequence[Query], row_R: Tensor, off_RK: Tensor) -> Tensor:
        """The same from the first position that any row edits, or that the readout reads: the end of the prompt."""
        start = min(int(self._first_of(row_R, off_RK).min()), int(batch.prompt_end.min()))
        kept = [(keys[:, :, :start], values[:, :, :start]) for keys, values in self._prefix]
        after = self.model.after_prefix(batch, start)
        streams = {self.layer + 1: self._streams[0].ablated(row_R, off_RK, start)}
        with joined(self.model, self._tower, streams, after, (kept, row_R.tolist())):
            return self.readout(after, queries)

    @contextmanager
    def _given(self, edited: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block, the layer's streams are `edited` [R, S, D] each."""
        with ExitStack() as stack:
            if self.resumes:
                stack.enter_context(resumed(self.model, edited))
            else:
                for site, acts_RSD in edited.items():
                    stack.enter_context(Edit(self.model, site, _put(acts_RSD)))
            yield

    def _inside(self, off_RK: Tensor) -> TokenEdit:
        """h + decode(a′) − decode(a) with the latents that the pass itself has at the layer."""

        def ablate(acts_NR: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            latents_NK = self.sae.encode(acts_NR, modality_N)[:, self._chosen]
            removed_NK = latents_NK * off_RK[where.batch_index]
            for modality, direction_KR in zip(MODALITIES, self._directions_MKR, strict=True):
                acts_NR = acts_NR - (removed_NK * (modality_N == modality)[:, None]) @ direction_KR
            return acts_NR

        return TokenEdit(ablate, cast(Any, self.tokens), "prefill")


def _put(acts_RSD: Tensor) -> TokenEdit:
    return TokenEdit(lambda _, __, where: acts_RSD[where.batch_index, where.position], tokens="every")


def _first_positions(stream: Stream) -> Tensor:
    """The first position at which each feature is active in each sample, int64[B, K]; their number where it is not."""
    active_BSK = stream.latents_BSK != 0
    end = active_BSK.shape[1]
    return torch.where(active_BSK.any(dim=1), active_BSK.int().argmax(dim=1), end)
