"""Which atoms fire on which token, and how strongly: a pure function of (config, split, index)."""

from __future__ import annotations

import numpy as np

from cmma.errors import ConfigError
from cmma.testbed import draws
from cmma.testbed.planted.atoms import Atoms
from cmma.testbed.planted.config import CLASSES, SPLITS, PlantedConfig

# Purposes of the random words of a sample (`cmma.testbed.draws.words`); noise is drawn in `activations`.
_OWN, _GROUP, _FOLLOW, _AGREE, _MAGNITUDE = 0, 2, 4, 6, 7


def frequencies(config: PlantedConfig, atoms: Atoms) -> np.ndarray:
    """Probability that each atom fires on a token of a modality that has it, [A], in closed form."""
    p_A = np.empty(len(atoms))
    for name in CLASSES:
        members = atoms.of_class(name)
        free = members[atoms.parent_A[members] < 0]
        law = np.arange(1, len(free) + 1, dtype=np.float64) ** -config.exponent
        p_A[free] = config.density * len(free) * law / law.sum() if len(free) else law
    children = np.flatnonzero(atoms.parent_A >= 0)
    p_A[children] = config.child_rate * p_A[atoms.parent_A[children]]
    return p_A


def sample_keys(config: PlantedConfig, split: str, start: int, stop: int) -> np.ndarray:
    """The random keys of samples `start` … `stop`, uint64 [N]. Raises ConfigError for an unknown split."""
    if split not in SPLITS:
        raise ConfigError(f"planted activations have no split {split!r}; there are {', '.join(SPLITS)}")
    return draws.sample_keys(config.seed, SPLITS.index(split), np.arange(start, stop))


def draw_codes(config: PlantedConfig, atoms: Atoms, keys_N: np.ndarray) -> np.ndarray:
    """Codes of the image and the text token of each sample: float64 [N, 2, A], 0 where an atom is silent.

    The text token takes over the state of a shared concept with probability `agreement`, and draws its own otherwise,
    so that frequencies are the same in both modalities. Magnitudes are independent between tokens.
    """
    n_atoms = len(atoms)
    image_NA, text_NA = (_fires(config, atoms, keys_N, stream) for stream in (0, 1))
    agrees_NA = draws.uniforms(keys_N, _AGREE, n_atoms) < config.agreement
    # A child agrees when its parent does: on a token it must never fire alone.
    child_A = atoms.parent_A >= 0
    agrees_NA[:, child_A] = agrees_NA[:, atoms.parent_A[child_A]]
    shared_A = atoms.class_A == CLASSES.index("shared")
    text_NA = np.where(agrees_NA & shared_A, image_NA, text_NA)
    fires_NMA = np.stack([image_NA, text_NA], axis=1) & atoms.present_MA
    low, high = config.magnitude_low, config.magnitude_high
    uniform_NMA = draws.uniforms(keys_N, _MAGNITUDE, 2 * n_atoms).reshape(-1, 2, n_atoms)
    return fires_NMA * (low + (high - low) * uniform_NMA)


def _fires(config: PlantedConfig, atoms: Atoms, keys_N: np.ndarray, stream: int) -> np.ndarray:
    """bool [N, A]: u < p, where u is the atom's own draw or, with probability `coherence`, its group's.

    Parents come before their children in each class, and a child's parent is never itself a child.
    """
    n_atoms = len(atoms)
    uniform_NA = draws.uniforms(keys_N, _OWN + stream, n_atoms)
    if config.group_size > 1 and config.coherence > 0:
        group_A = _groups(config, atoms)
        group_NG = draws.uniforms(keys_N, _GROUP + stream, int(group_A.max()) + 1)
        follows_NA = draws.uniforms(keys_N, _FOLLOW + stream, n_atoms) < config.coherence
        follows_NA &= atoms.parent_A < 0
        uniform_NA = np.where(follows_NA, group_NG[:, group_A], uniform_NA)
    child_A = atoms.parent_A >= 0
    fires_NA = uniform_NA < np.where(child_A, config.child_rate, frequencies(config, atoms))
    fires_NA[:, child_A] &= fires_NA[:, atoms.parent_A[child_A]]
    return fires_NA


def _groups(config: PlantedConfig, atoms: Atoms) -> np.ndarray:
    """Group number of each atom, [A]: consecutive atoms of one class. (Children follow parents, not groups.)"""
    within_A = np.concatenate([np.arange((atoms.class_A == index).sum()) for index in range(len(CLASSES))])
    pairs_A2 = np.stack([atoms.class_A, within_A // config.group_size], axis=1)
    return np.unique(pairs_A2, axis=0, return_inverse=True)[1].reshape(-1)


def sample_codes(codes_NMA: np.ndarray, atoms: Atoms) -> np.ndarray:
    """One code per sample and atom, [N, A]: the token's that has it, the mean over both tokens for a shared concept."""
    return codes_NMA.sum(1) / atoms.present_MA.sum(0)
