"""Linear decompositions as dictionary methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA, FastICA
from torch import Tensor

from cmma.benchmark.protocols import Budget
from cmma.benchmark.registry import register
from cmma.sae.architectures.topk import keep_largest
from cmma.sae.records import ActivationReader
from cmma.sae.standardiser import Standardiser

_FIT_RECORDS = 20_000  # records that they see


class LinearDictionary:
    """Signed components as pairs of latents, one for each sign; of all, the k largest of a record are kept.

    Args:
        standardiser: of the records.
        components_CW: directions in standardised space. analysis_CW: what a record is multiplied with.
        k: latents kept per record.
    """

    attends = False

    def __init__(self, standardiser: Standardiser, components_CW: Tensor, analysis_CW: Tensor, k: int) -> None:
        self.standardiser, self.k = standardiser, k
        self.directions_KW = torch.cat([components_CW, -components_CW])
        self.analysis_KW = torch.cat([analysis_CW, -analysis_CW])
        self.decoder_MKW = self.directions_KW * standardiser.scale_MD[:2, None]

    def encode(self, acts_BW: Tensor, modality_B: Tensor, context_BCW: Tensor | None = None) -> Tensor:
        """See `Dictionary.encode`."""
        scores_BK = self.standardiser.standardise(acts_BW, modality_B) @ self.analysis_KW.T
        return keep_largest(scores_BK, self.k)

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
