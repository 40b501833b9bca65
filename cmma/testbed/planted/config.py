"""What is planted: the worlds of activation records and the circuits over their atoms. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cmma.checks import at_least, one_of, positive, within
from cmma.errors import ConfigError

SPLITS = ("train", "test")
CLASSES = ("visual", "textual", "shared")
"""Classes of atoms; *shared* is what the paper calls cross-modal."""
GRAPHS = ("signed", "additive", "zero")


@dataclass(frozen=True)
class PlantedConfig:
    """One world of planted activations. A sample is an image token and a text token that share concepts.

    The defaults are the world of `cmma benchmark task=planted`: image tokens ten times as large as text tokens, a
    modality gap, and concepts whose two directions are close and not the same.

    Every atom's firing frequency is a closed form of these numbers (`cmma.testbed.planted.codes.frequencies`).
    """

    d: int = 64
    """Width of one modality's activations."""
    n_visual: int = 48
    """Atoms that only image tokens have."""
    n_textual: int = 48
    """Atoms that only text tokens have."""
    n_shared: int = 48
    """Concepts that both modalities have, each with an image and a text direction."""
    cosine: float = 0.9
    """Cosine ρ between the two directions of every shared concept, exact."""
    blocks: int = 1
    """1: both modalities live in one space. 2: records are pair views [h_v ; h_t] of width 2d with the absent half
    zero, as dual encoders have them; ρ then compares the halves, which are different spaces."""
    density: float = 0.04
    """Mean firing frequency of the atoms of a class, children apart."""
    exponent: float = 0.5
    """Frequency of the r-th atom of a class falls as r^-exponent; 0 = all alike."""
    agreement: float = 1.0
    """Probability that a sample's text token has the state of the image token's concept; else it draws its own."""
    magnitude_low: float = 0.5
    """Codes of active atoms are uniform between this …"""
    magnitude_high: float = 1.5
    """… and this."""
    group_size: int = 1
    """Consecutive atoms of a class that form a group, whose atoms fire together more than chance; 1 = no groups."""
    coherence: float = 0.0
    """Probability with which an atom follows its group's draw instead of its own. Two atoms of a group fire together
    with probability coherence² · min(p, q) + (1 − coherence²) · p q."""
    n_children: int = 0
    """The last so many atoms of each class are children: each fires only together with its parent, one of the first."""
    child_rate: float = 0.5
    """Probability that a child fires when its parent does."""
    noise: float = 0.05
    """Standard deviation of Gaussian noise per coordinate, where atoms have norm one."""
    n_outliers: int = 0
    """The first so many coordinates of each token are outlier dimensions: `outlier` · (1 + z/10) is added, z normal."""
    outlier: float = 20.0
    """Size of an outlier dimension."""
    visual_scale: float = 10.0
    """Factor on all image tokens."""
    textual_scale: float = 1.0
    """Factor on all text tokens."""
    offset: float = 2.0
    """Norm of each modality's own mean vector, before the factor: the modality gap."""
    seed: int = 0
    """Of the atoms and of the records."""

    def __post_init__(self) -> None:
        at_least("planted.d", self.d, 2)
        for name in ("n_visual", "n_textual", "n_shared", "exponent", "noise", "n_outliers", "offset", "seed"):
            at_least(f"planted.{name}", getattr(self, name), 0)
        at_least("planted.group_size", self.group_size, 1)
        within("planted.cosine", self.cosine, -1, 1)
        for name in ("agreement", "coherence", "child_rate"):
            within(f"planted.{name}", getattr(self, name), 0, 1)
        for name in ("visual_scale", "textual_scale", "magnitude_low", "density"):
            positive(f"planted.{name}", getattr(self, name))
        if self.blocks not in (1, 2):
            raise ConfigError(f"planted.blocks={self.blocks} must be 1 (one space) or 2 (pair views)")
        if self.magnitude_high < self.magnitude_low:
            raise ConfigError(f"planted.magnitude_high={self.magnitude_high} is below planted.magnitude_low")
        if self.n_outliers > self.d:
            raise ConfigError(f"planted.n_outliers={self.n_outliers} is more than planted.d={self.d}")
        if self.n_visual + self.n_shared == 0 or self.n_textual + self.n_shared == 0:
            raise ConfigError("planted.n_shared=0 leaves a modality without atoms; raise it or n_visual and n_textual")
        for name in ("n_visual", "n_textual", "n_shared"):
            n = getattr(self, name)
            if n and self.n_children > n // 2:
                raise ConfigError(f"planted.n_children={self.n_children} is more than half of planted.{name}={n}")
            if n and self.highest_frequency(n) > 1:
                raise ConfigError(f"planted.density={self.density} with planted.exponent={self.exponent} gives the "
                                  f"first of planted.{name}={n} atoms a frequency above 1; lower one of them")

    def highest_frequency(self, n: int) -> float:
        """Frequency of the first of a class of `n` atoms; children follow parents and are not part of the law."""
        n -= self.n_children
        return self.density * n / sum(rank**-self.exponent for rank in range(1, n + 1))


@dataclass(frozen=True)
class CircuitConfig:
    """One planted readout over the codes of some atoms."""

    n_features: int = 24
    """Atoms that the readout reads."""
    n_edges: int = 24
    """Pairs of them that interact."""
    graph: str = "signed"
    """signed (main effects and pairwise interactions of both signs) | additive (main effects alone: a null graph) |
    zero (nothing but the sample's own base value)."""
    main: float = 1.0
    """Main effects are ± this times a factor between ½ and 1½."""
    interaction: float = 1.0
    """Interactions likewise."""
    base: float = 1.0
    """Standard deviation over samples of what no atom explains."""
    noise: float = 0.2
    """Standard deviation of independent noise on every measured run. A network has none; it sets the difficulty."""
    saturation: float = 0.0
    """s of the link tanh(s u) / s; 0 = the identity. Above 0 pairs without an edge have an excess too."""
    seed: int = 0
    """Of effects, base values and noise."""

    def __post_init__(self) -> None:
        one_of("circuit.graph", self.graph, GRAPHS)
        at_least("circuit.n_features", self.n_features, 2)
        for name in ("n_edges", "main", "interaction", "base", "noise", "saturation", "seed"):
            at_least(f"circuit.{name}", getattr(self, name), 0)
        pairs = self.n_features * (self.n_features - 1) // 2
        if self.n_edges > pairs:
            raise ConfigError(f"circuit.n_edges={self.n_edges} is more than the {pairs} pairs of circuit.n_features")
