"""The paper's interventions on dictionary features (Eq. 8-11) and clamping, each with its controls."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmma.causal.config import INTERVENTIONS, SOURCES
from cmma.causal.controls import matched_features, random_direction
from cmma.causal.effects import InterventionResult
from cmma.causal.queries import Query
from cmma.causal.readout import Readout, batches, collate_queries
from cmma.checks import one_of
from cmma.console import progress
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.hooks import TokenEdit, Where, splice
from cmma.hooks.resume import EditedPasses
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.latent_edit import LatentSource


@dataclass(frozen=True)
class Intervention:
    """What is done to which features, where and when.

    Attributes:
        kind: `ablate` (Eq. 8), `amplify` (Eq. 9), `substitute` (Eq. 10), `combine` (Eq. 11) or `clamp`.
        features: latents that change together.
        strength: α of Eq. 9, β of Eq. 11, or the value of a clamp.
        tokens: `all`, `visual` or `textual`.
        phase: `all`, `prefill` or `decode`. A teacher-forced pass is a prefill.
        keep_error: the reconstruction error passes through.
        source: activations of the other input (Eq. 10-11): `mean` over its chosen tokens, one value per feature, or
            `aligned`, position by position, for inputs whose tokens correspond.
    """

    kind: str
    features: tuple[int, ...]
    strength: float = 0.0
    tokens: str = "all"
    phase: str = "all"
    keep_error: bool = True
    source: str = "mean"

    def __post_init__(self) -> None:
        one_of("intervention.kind", self.kind, INTERVENTIONS)
        one_of("intervention.source", self.source, SOURCES)
        if not self.features:
            raise ConfigError("an intervention needs at least one feature; none was selected or given")

    @property
    def needs_source(self) -> bool:
        """Whether activations of another input enter."""
        return self.kind in ("substitute", "combine")

    def edit(self, sae: SparseAutoencoder, source: LatentSource | None = None) -> TokenEdit:
        """The edit on records; `source` holds the features' activations in the other input."""
        where = {"tokens": self.tokens, "phase": self.phase, "keep_error": self.keep_error}
        match self.kind:
            case "ablate":
                return sae.edit(ablate=self.features, **where)
            case "amplify":
                return sae.edit(amplify=dict.fromkeys(self.features, self.strength), **where)
            case "clamp":
                return sae.edit(set=dict.fromkeys(self.features, self.strength), **where)
            case "substitute":
                return sae.edit(substitute=source, **where)
            case _:
                return sae.edit(combine=(self.strength, source), **where)


@torch.no_grad()
def run_intervention(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    queries: Sequence[Query],
    intervention: Intervention,
    readout: Readout,
    *,
    density_K: Tensor,
    sources: Sequence[Query] | None = None,
    n_controls: int = 8,
    batch_size: int = 16,
    seed: int = 0,
) -> InterventionResult:
    """The readout of every query without and with the intervention, and under both kinds of control.

    Args:
        queries: where the effect is measured; never those that the features were selected on (`assert_disjoint`).
        density_K: share of tokens on which each latent is active, for matching the random features.
        sources: one per query, for Eq. 10-11; None takes `other_images`.

    Raises:
        DataError: no query, too few live features for the controls, or sources whose tokens do not correspond.
    """
    if not queries:
        raise DataError("an intervention needs at least one query to measure its effect on")
    controls = matched_features(density_K, list(intervention.features), n_controls, seed)
    variants = [intervention, *(replace(intervention, features=tuple(drawn)) for drawn in controls)]
    sources = _sources(queries, sources) if intervention.needs_source else None

    scores_VN = np.empty((2 + 2 * n_controls, len(queries)))
    norms: list[Tensor] = []
    with progress(f"Intervening ({intervention.kind})", total=len(queries)) as bar:
        start = 0
        for batch, some in batches(model, queries, batch_size):
            rows = slice(start, start + len(some))
            there = None if sources is None else collate_queries(model, sources[rows])
            edits = _edits(model, sae, layer, variants, batch, there)
            directions = [random_direction(edits[0], _draw_seed(seed, draw)) for draw in range(n_controls)]
            passes = EditedPasses(model, layer, batch, partial(readout, queries=some))
            scores_VN[0, rows] = passes.clean_B.double().cpu().numpy()
            for variant, edit in enumerate([noting_norms(edits[0], norms), *edits[1:], *directions], start=1):
                scores_VN[variant, rows] = passes(edit).double().cpu().numpy()
            start = rows.stop
            bar.advance(len(some))
    return InterventionResult(
        kind=intervention.kind, strength=intervention.strength, features=intervention.features, layer=layer,
        readout=readout.name, keys=tuple(query.key for query in queries), before_N=scores_VN[0], after_N=scores_VN[1],
        random_features_CN=scores_VN[2 : 2 + n_controls], random_directions_CN=scores_VN[2 + n_controls :],
        change_norm=float(torch.cat(norms).mean()) if norms else 0.0, seed=seed,
    )  # fmt: skip


def dose_response(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, queries: Sequence[Query], intervention: Intervention,
    readout: Readout, strengths: Sequence[float], **options: Any,
) -> list[InterventionResult]:  # fmt: skip
    """`run_intervention` at every strength (α of Eq. 9, β of Eq. 11, clamped values), same controls at each."""
    return [
        run_intervention(model, sae, layer, queries, replace(intervention, strength=strength), readout, **options)
        for strength in strengths
    ]


@dataclass(frozen=True)
class Texts:
    """What a generative model writes for each sample: without and with the intervention, and under one control each."""

    keys: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    random_features: tuple[str, ...]
    random_direction: tuple[str, ...]


@torch.no_grad()
def generate_texts(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    samples: Sequence[Sample],
    intervention: Intervention,
    *,
    density_K: Tensor,
    text: str | Sequence[str] | None = None,
    sources: Sequence[Sample] | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    seed: int = 0,
) -> Texts:
    """Greedy generation with the KV cache, under the intervention in its phase (prompt, new tokens, or both).

    Args:
        text: instruction for every sample, or one for each; None asks for a caption (`model.spec.prompt`).
        sources: one per sample, for Eq. 10-11; the mean over their tokens is taken, since texts differ in length.
    """
    text = text or model.spec.prompt
    texts = [text] * len(samples) if isinstance(text, str) else text
    intervention = replace(intervention, source="mean")
    drawn = matched_features(density_K, list(intervention.features), 1, seed)[0]
    variants = [intervention, replace(intervention, features=tuple(drawn))]
    queries = [Query(*asked) for asked in zip(samples, texts, strict=True)]
    given = None if sources is None else [Query(*asked) for asked in zip(sources, texts, strict=True)]
    sources_N = _sources(queries, given) if intervention.needs_source else None

    written: list[list[str]] = [[], [], [], []]
    with progress(f"Generating ({intervention.kind})", total=len(queries)) as bar:
        for start in range(0, len(queries), batch_size):
            rows = slice(start, start + batch_size)
            batch = model.collate(samples[rows], texts[rows], padding="left")
            there = None if sources_N is None else collate_queries(model, sources_N[rows])
            edits = _edits(model, sae, layer, variants, batch, there)
            runs = [None, *edits, random_direction(edits[0], _draw_seed(seed, 0))]
            for said, edit in zip(written, runs, strict=True):
                with _under(model, layer, edit):
                    said += model.generate(batch, max_new_tokens)
            bar.advance(len(samples[rows]))
    return Texts(tuple(query.key for query in queries), *map(tuple, written))


@dataclass(frozen=True)
class Images:
    """What a diffusion model makes of each caption: without and with the intervention, and under one control each."""

    keys: tuple[str, ...]
    before: tuple[Image.Image, ...]
    after: tuple[Image.Image, ...]
    random_features: tuple[Image.Image, ...]
    random_direction: tuple[Image.Image, ...]


def generate_images(
    model: Any,
    sae: SparseAutoencoder,
    layer: int,
    samples: Sequence[Sample],
    intervention: Intervention,
    *,
    density_K: Tensor,
    steps: int = 25,
    guidance: float = 4.0,
    batch_size: int = 16,
    seed: int = 0,
) -> Images:
    """Images in the diffusion loop, each sample's from one noise, with the intervention in every pass of every step.

    The empty prompts of guidance are edited as the prompts are. For Eq. 10-11 the next sample is the source: the mean
    over its tokens in one denoising pass of its own image.
    """
    intervention = replace(intervention, source="mean")
    drawn = matched_features(density_K, list(intervention.features), 1, seed)[0]
    variants = [intervention, replace(intervention, features=tuple(drawn))]
    queries = [Query(sample, sample.caption) for sample in samples]
    sources = _sources(queries, None) if intervention.needs_source else None
    made: list[list[Image.Image]] = [[], [], [], []]
    with progress(f"Making images ({intervention.kind})", total=len(samples)) as bar:
        for start in range(0, len(samples), batch_size):
            some = samples[start : start + batch_size]
            batch = model.collate(some)
            there = None if sources is None else collate_queries(model, sources[start : start + batch_size])
            edits = _edits(model, sae, layer, variants, batch, there, repeats=2)
            runs = [None, *edits, random_direction(edits[0], _draw_seed(seed, 0))]
            noise_seeds = [zlib.crc32(sample.key.encode()) for sample in some]
            for images, edit in zip(made, runs, strict=True):
                with _under(model, layer, edit):
                    images += model.generate_images([s.caption for s in some], noise_seeds, steps, guidance)
            bar.advance(len(some))
    return Images(tuple(sample.key for sample in samples), *map(tuple, made))


def other_images(queries: Sequence[Query]) -> list[Query]:
    """A source for each query: the next query of another image, starting over at the end.

    Raises:
        DataError: all queries are of one image.
    """
    found = []
    for index, query in enumerate(queries):
        around = (queries[(index + step) % len(queries)] for step in range(1, len(queries)))
        other = next((each for each in around if each.key != query.key), None)
        if other is None:
            raise DataError(f"substitution needs a second image beside {query.key!r} to take activations from")
        found.append(other)
    return found


def noting_norms(edit: TokenEdit, norms: list[Tensor]) -> TokenEdit:
    """The same edit; appends the norm [N] of its change on every token to `norms`."""

    def fn(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        new_ND = edit.fn(acts_ND, modality_N, where)
        norms.append((new_ND - acts_ND).norm(dim=-1).float().cpu())
        return new_ND

    return replace(edit, fn=fn)


@torch.no_grad()
def read_latents(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, batch: Batch, features: Sequence[int], tokens: str
) -> tuple[Tensor, Tensor]:
    """Activations of some features in a clean pass.

    Returns:
        Float[B, S, F], zero at tokens that are not chosen, and the mean over each sample's chosen tokens, Float[B, F].
        The towers of a dual encoder count together in the mean; by position only one stream can be read, and the
        first tensor is then that of the tower with the longer sequence.
    """
    reads: list[tuple[Tensor, Where]] = []
    columns = torch.as_tensor(list(features), device=model.device)

    def read(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        reads.append((sae.encode(acts_ND, modality_N)[:, columns], where))
        return acts_ND

    with splice(model, layer, TokenEdit(read, cast(Any, tokens), "prefill")):
        model(**batch)
    n_rows = len(next(iter(batch.values())))
    length = max((int(where.position.max()) + 1 for _, where in reads), default=0)
    total_BF, count_B = torch.zeros(n_rows, len(columns)), torch.zeros(n_rows)
    latents_BSF = torch.zeros(n_rows, length, len(columns))
    for latents_NF, where in reads:
        row_N, position_N = where.batch_index.cpu(), where.position.cpu()
        latents_BSF[row_N, position_N] = latents_NF.float().cpu()
        total_BF.index_add_(0, row_N, latents_NF.float().cpu())
        count_B.index_add_(0, row_N, torch.ones(len(row_N)))
    return latents_BSF, total_BF / count_B.clamp_min(1)[:, None]


def _edits(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, variants: Sequence[Intervention], batch: Batch,
    there: Batch | None, repeats: int = 1,
) -> list[TokenEdit]:  # fmt: skip
    """The edit of each variant (the same intervention on other features) for one batch.

    repeats: how often the samples stand one after the other in the edited passes (guidance: twice).
    """
    if there is None:
        return [variant.edit(sae) for variant in variants]
    first = variants[0]
    if first.source == "aligned" and not torch.equal(model.token_modality(batch), model.token_modality(there)):
        raise DataError("intervention.source=aligned needs sources of corresponding tokens; take source=mean")
    if first.source == "aligned" and len(model.record_sites(layer)) > 1:
        raise ConfigError(f"intervention.source=aligned needs one stream; {model.spec.name} has two; take source=mean")
    features = list(dict.fromkeys(feature for variant in variants for feature in variant.features))
    latents_BSF, mean_BF = read_latents(model, sae, layer, there, features, first.tokens)
    values = latents_BSF if first.source == "aligned" else mean_BF
    columns = [[features.index(each) for each in variant.features] for variant in variants]
    return [
        variant.edit(sae, LatentSource(variant.features, torch.cat([values[..., own]] * repeats)))
        for variant, own in zip(variants, columns, strict=True)
    ]


def _sources(queries: Sequence[Query], sources: Sequence[Query] | None) -> Sequence[Query]:
    if sources is None:
        return other_images(queries)
    if len(sources) != len(queries):
        raise DataError(f"{len(queries)} queries were given {len(sources)} sources; give one source per query")
    return sources


def _under(model: MultimodalModel, layer: int, edit: TokenEdit | None) -> AbstractContextManager[None]:
    return nullcontext() if edit is None else splice(model, layer, edit)


def _draw_seed(seed: int, draw: int) -> int:
    """Seeds of the random directions, apart from that of the random features."""
    return 1_000_003 * (seed + 1) + draw
