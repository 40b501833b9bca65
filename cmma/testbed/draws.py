"""Random numbers that are a pure function of (seed, split, index, draw).

A counter-based generator (splitmix64, Steele et al. 2014) makes any range of samples reproducible on its own: there is
no state to carry from one sample to the next, so chunks may be generated in any order and on any number of workers.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(words: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: a bijection of uint64 whose output bits all depend on all input bits."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def sample_keys(seed: int, stream: int, indices_N: np.ndarray) -> np.ndarray:
    """One uint64 key per sample from (seed, stream, index); `stream` keeps splits apart."""
    root = mix(np.array([seed], dtype=np.uint64) * _GOLDEN + np.uint64(1))
    root = mix(root + np.array([stream], dtype=np.uint64) * _GOLDEN)
    return mix(root + (indices_N.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def words(keys_N: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """`count` uint64 words per key [N, count]; different `purpose` numbers give independent words."""
    base_N = mix(keys_N + np.array([purpose + 1], dtype=np.uint64) * _MIX_1)
    return mix(base_N[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def uniforms(keys_N: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) per key: float64 [N, count]."""
    return (words(keys_N, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(keys_N: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """`count` standard normal numbers per key: float64 [N, count], by inversion of 52 bits (never 0 or 1)."""
    return ndtri(((words(keys_N, purpose, count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)
