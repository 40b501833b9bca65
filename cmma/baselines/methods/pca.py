"""Principal components (scikit-learn) of the same cached records that the dictionaries were trained on."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from cmma.baselines.ground import Ground
from cmma.baselines.methods.base import DictionaryMethod, linear_dictionary
from cmma.sae.records import ActivationReader
from cmma.sae.standardiser import Standardiser


def pca(ground: Ground) -> DictionaryMethod:
    """Every component as two units, one for each sign: a unit's activation says how much of it there is."""
    components_CD = principal_components(ground.reader, ground.standardiser, ground.config.fit_records)
    found = linear_dictionary(ground.standardiser, torch.cat([components_CD, -components_CD]))
    return DictionaryMethod("PCA", ground, found)


def principal_components(reader: ActivationReader, standardiser: Standardiser, n_records: int) -> Tensor:
    """Float[C, D]: all components of at most `n_records` standardised records, by falling variance."""
    batch = next(iter(reader.batches(min(n_records, reader.n_records), 0)))
    h_BD = standardiser.cpu().standardise(batch.acts_BD.float(), batch.modality_B).numpy().astype(np.float64)
    return torch.from_numpy(PCA(svd_solver="full").fit(h_BD).components_).float()
