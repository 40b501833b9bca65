"""Corrections for many tests at once; adjusted p-values, to be compared with alpha as they are.

NaN (a test that could not be made) stays NaN and does not count in the family.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.multitest import multipletests


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Holm (1979): family-wise error rate; the paper's choice over interventions."""
    return _adjusted(p, "holm")


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg (1995): false discovery rate; the paper's choice over edges."""
    return _adjusted(p, "fdr_bh")


def _adjusted(p: ArrayLike, method: str) -> NDArray[np.float64]:
    adjusted = np.array(p, dtype=np.float64)
    made = np.isfinite(adjusted)
    if made.any():
        adjusted[made] = multipletests(adjusted[made], method=method)[1]
    return adjusted
