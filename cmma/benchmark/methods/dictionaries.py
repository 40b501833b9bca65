"""Dictionary methods: sparse autoencoders, linear baselines, and the controls that no table should lack."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA, FastICA
from torch import Tensor

from cmma.benchmark.protocols import Budget
from cmma.benchmark.registry import register
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, SAEConfig, preset
from cmma.sae.records import ActivationReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.trainer import Trainer

_FIT_RECORDS = 20_000  # records that the linear baselines see


class SAEDictionary:
    """A `SparseAutoencoder` as a `Dictionary`."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae.requires_grad_(False)
        self.decoder_MKW = torch.stack([sae.directions(m) for m in (Modality.VISUAL, Modality.TEXTUAL)])

    def encode(self, acts_BW: Tensor, modality_B: Tensor) -> Tensor:
        """See `Dictionary.encode`."""
        return self.sae.encode(acts_BW, modality_B)

    def decode(self, latents_BK: Tensor, modality_B: Tensor) -> Tensor:
        """See `Dictionary.decode`."""
        return self.sae.decode(latents_BK, modality_B)


class SAEMethod:
    """A sparse autoencoder trained as `cmma.sae` trains it, at the benchmark's budget."""

    learns_decoder = True

    def config(self, budget: Budget) -> SAEConfig:
        """Architecture and objective at this budget."""
        raise NotImplementedError

    def fit(self, reader: ActivationReader, budget: Budget, seed: int) -> SAEDictionary:
        """Train from scratch."""
        sae = build_sae(self.config(budget), reader.width, Standardiser.fit(reader), seed)
        sae.W_dec.requires_grad_(self.learns_decoder)
        optim = OptimConfig(
            lr=3e-3, batch=budget.batch, steps=budget.steps, warmup=min(50, budget.steps // 4),
            dead_after=100 * budget.batch, resample_every=100,
        )
        trainer = Trainer(sae, optim, reader.n_records, reader.n_labels, seed)
        for batch in islice(reader.batches(budget.batch, seed, together=sae.reads_pairs), budget.steps):
            trainer.advance(batch)
        sae.conclude(reader, budget.batch, seed)
        return SAEDictionary(sae)


def _relu(arch: str, budget: Budget, **objective: float) -> SAEConfig:
    """A ReLU dictionary that starts sparse and is driven to the target L0: dense starts find no atom."""
    visual, textual = budget.l0_M
    return preset(
        arch, n_latents=budget.n_latents, initial_l0=8.0, lambda1=1.0, adaptive_sparsity=True,
        target_l0_visual=visual, target_l0_textual=textual, **objective,
    )


@register("dictionary", "msae")
class MSAE(SAEMethod):
    """The paper's dictionary. Its own λ2 and λ3 do nothing at this size; with these the two terms act."""

    def config(self, budget: Budget) -> SAEConfig:
        """See `SAEMethod.config`."""
        return _relu("msae", budget, lambda2=0.05, lambda3=0.02)


@register("dictionary", "standard")
class Standard(SAEMethod):
    """ReLU and L1: M-SAE without its two terms."""

    def config(self, budget: Budget) -> SAEConfig:
        """See `SAEMethod.config`."""
        return _relu("standard", budget)


@register("dictionary", "topk")
class TopK(SAEMethod):
    """TopK with the target L0 as k."""

    def config(self, budget: Budget) -> SAEConfig:
        """See `SAEMethod.config`."""
        return preset("topk", n_latents=budget.n_latents, k=budget.k)


@register("dictionary", "untrained")
class Untrained(TopK):
    """Control: TopK as it is initialised. What it scores is owed to the data, not to learning."""

    def fit(self, reader: ActivationReader, budget: Budget, seed: int) -> SAEDictionary:
        """Only the standardiser is fitted."""
        return SAEDictionary(build_sae(self.config(budget), reader.width, Standardiser.fit(reader), seed))


@register("dictionary", "frozen_decoder")
class FrozenDecoder(TopK):
    """Control: TopK whose random decoder is never changed; the encoder learns ("Sanity checks", arXiv 2602.14111)."""

    learns_decoder = False


class LinearDictionary:
    """Signed components as pairs of latents, one for each sign; of all, the k largest of a record are kept.

    Args:
        standardiser: of the records.
        components_CW: directions in standardised space. analysis_CW: what a record is multiplied with.
        k: latents kept per record.
    """

    def __init__(self, standardiser: Standardiser, components_CW: Tensor, analysis_CW: Tensor, k: int) -> None:
        self.standardiser, self.k = standardiser, k
        self.directions_KW = torch.cat([components_CW, -components_CW])
        self.analysis_KW = torch.cat([analysis_CW, -analysis_CW])
        self.decoder_MKW = self.directions_KW * standardiser.scale_MD[:2, None]

    def encode(self, acts_BW: Tensor, modality_B: Tensor) -> Tensor:
        """See `Dictionary.encode`."""
        scores_BK = self.standardiser.standardise(acts_BW, modality_B) @ self.analysis_KW.T
        values_Bk, kept_Bk = scores_BK.topk(min(self.k, scores_BK.shape[1]), dim=1)
        return torch.zeros_like(scores_BK).scatter(1, kept_Bk, values_Bk.relu())

    def decode(self, latents_BK: Tensor, modality_B: Tensor) -> Tensor:
        """See `Dictionary.decode`."""
        return self.standardiser.restore(latents_BK @ self.directions_KW, modality_B)


class LinearMethod:
    """A scikit-learn decomposition of standardised records into at most n_latents / 2 signed components."""

    def decomposition(self, n_components: int, seed: int) -> Any:
        """The unfitted estimator."""
        raise NotImplementedError

    def fit(self, reader: ActivationReader, budget: Budget, seed: int) -> LinearDictionary:
        """Fit to one shuffled sample of the records."""
        standardiser = Standardiser.fit(reader)
        batch = next(iter(reader.batches(min(_FIT_RECORDS, reader.n_records), seed)))
        h_BW = standardiser.standardise(batch.acts_BD.float(), batch.modality_B).numpy().astype(np.float64)
        estimator = self.decomposition(min(reader.width, budget.n_latents // 2), seed).fit(h_BW)
        # Standardised records have mean zero, so that the estimators' own centring can be left out.
        analysis_CW = torch.from_numpy(estimator.components_).float()
        size_C1 = analysis_CW.norm(dim=1, keepdim=True)
        synthesis_WC = torch.from_numpy(np.linalg.pinv(estimator.components_)).float()
        return LinearDictionary(standardiser, synthesis_WC.T * size_C1, analysis_CW / size_C1, budget.k)


@register("dictionary", "pca")
class PrincipalComponents(LinearMethod):
    """Principal components: orthogonal directions of largest variance."""

    def decomposition(self, n_components: int, seed: int) -> PCA:
        """See `LinearMethod.decomposition`."""
        return PCA(n_components, random_state=seed)


@register("dictionary", "ica")
class IndependentComponents(LinearMethod):
    """Independent components (FastICA): as many non-Gaussian directions as there are dimensions."""

    def decomposition(self, n_components: int, seed: int) -> FastICA:
        """See `LinearMethod.decomposition`."""
        return FastICA(n_components, random_state=seed, max_iter=400, tol=1e-3, whiten="unit-variance")
