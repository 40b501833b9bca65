"""What a Cross-Modal Interaction Graph is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least, one_of
from cmma.errors import ConfigError

TOKENS = ("all", "visual", "textual")
RANKINGS = ("attribution", "density")
READOUTS = ("auto", "logit_difference", "log_probability", "probability", "cosine", "denoising")


@dataclass(frozen=True)
class CMIGConfig:
    """Settings of one graph; the defaults are those of `conf/cmig/default.yaml`.

    Attributes:
        split: split of the data set; selection and measurement take disjoint samples of it.
        n_features: features that enter, k; the cost grows with its square.
        n_samples: images on which effects are measured, none of them used to select features.
        n_selection_samples: other images, on which features are ranked.
        ranking: "attribution" (mean |linearised effect of the ablation on the readout|) or "density".
        min_density: a feature enters only if it is active in at least this share of the selection samples.
        quotas: share of the k places per specialisation class; empty = as the ranking falls. Places that a class
            cannot fill go to the best of the others.
        readout: "logit_difference", "log_probability" or "probability" of the answer (generative models), "cosine"
            (dual encoders); "auto" is the first for the former and the last for the latter.
        tokens: at which tokens a feature is ablated: "all", "visual", "textual".
        pairs_per_feature: pairs measured exactly, per feature: those that the screen puts first; 0 = every pair,
            without a screen. The cost of all pairs grows with k², that of so many with k.
        to_layers: later layers onto whose features effects are measured too; each needs a dictionary
            (`cmma train-sae layer=…`).
        random_pairs: further pairs measured, drawn from those that the screen did not put first: what is found there
            estimates what the screen missed.
        duplicates: features whose directions have at least this cosine count as one; the best ranked stands for them.
        rows_at_once: sample × ablation rows in one forward pass.
        samples_at_once: samples measured together, stored when done, and shared out over processes.
        permutations: of the first look of every test (the paper's 1,000).
        max_permutations: small p-values are refined up to this number (see `statistics.permutation`).
        resamples: bootstrap resamples of the images, for intervals.
        alpha: level of the false discovery rate (Benjamini–Hochberg).
        strong, moderate: cuts of the interaction strength in units of the readout's clean spread (paper: 0.5, 0.2).
        top_share: share of the pairs, those of largest excess, that make the descriptive graph of fixed density.
        random_graphs: degree-matched random graphs behind every network number.
        power_law_draws: synthetic degree sequences behind the power law's goodness of fit.
        seed: of sampling, permutations, bootstrap and random graphs.
    """

    split: str = "balanced"
    n_features: int = 32
    n_samples: int = 48
    n_selection_samples: int = 48
    ranking: str = "attribution"
    min_density: float = 0.05
    quotas: dict[str, float] | None = None
    readout: str = "auto"
    tokens: str = "all"
    pairs_per_feature: int = 0
    random_pairs: int = 500
    to_layers: list[int] = field(default_factory=list)
    duplicates: float = 0.95
    rows_at_once: int = 256
    samples_at_once: int = 16
    permutations: int = 1000
    max_permutations: int = 100_000
    resamples: int = 10_000
    alpha: float = 0.05
    strong: float = 0.5
    moderate: float = 0.2
    top_share: float = 0.2
    random_graphs: int = 50
    power_law_draws: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for key, allowed in (("tokens", TOKENS), ("ranking", RANKINGS), ("readout", READOUTS)):
            one_of(f"cmig.{key}", getattr(self, key), allowed)
        for key in ("n_features", "n_samples", "n_selection_samples", "random_graphs"):
            at_least(f"cmig.{key}", getattr(self, key), 2)
        for key in ("rows_at_once", "samples_at_once"):
            at_least(f"cmig.{key}", getattr(self, key), 1)
        for key in ("pairs_per_feature", "random_pairs"):
            at_least(f"cmig.{key}", getattr(self, key), 0)
        if not 0 <= self.moderate < self.strong:
            raise ConfigError(f"cmig.moderate={self.moderate} must lie between 0 and cmig.strong={self.strong}")
        for key in ("alpha", "top_share"):
            if not 0 < getattr(self, key) < 1:
                raise ConfigError(f"cmig.{key}={getattr(self, key)} must lie between 0 and 1")
        if self.quotas and sum(self.quotas.values()) > 1 + 1e-6:
            raise ConfigError(f"cmig.quotas add up to {sum(self.quotas.values()):.2f}; they are shares and may reach 1")
