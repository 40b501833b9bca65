"""What can be configured about the comparison with baselines. A plain dataclass: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least, one_of, positive
from cmma.control.config import ControlConfig
from cmma.errors import ConfigError
from cmma.mitigation.config import MitigationConfig

METHODS = (
    "msae", "standard_sae", "pca", "attention", "integrated_gradients", "grad_cam", "linear_probe", "mlp_probe", "shap",
    "random_directions",
)
RANDOM = "random directions"
"""What tables call the control."""
COMPARISONS = ("interpretability", "hallucination", "control")


def _mitigation() -> MitigationConfig:
    return MitigationConfig(
        n_calibration=30, n_held_out=100, strengths=[1.0, 1.3], head_counts=[1, 2, 3, 4, 6, 8], n_questions=30,
        max_new_tokens=64, n_bootstrap=2000,
    )  # fmt: skip


def _control() -> ControlConfig:
    return ControlConfig(
        dimensions=["object", "style", "attribute"], n_selection=60, max_samples=60, n_tuning=12, n_features=[4, 32],
        strengths=[1.0, 2.0], max_new_tokens=64, n_controls=1,
    )  # fmt: skip


@dataclass(frozen=True)
class BaselinesConfig:
    """Which methods are compared in what, and what each of them may use.

    Attributes:
        methods: of METHODS; `msae` is the dictionary of the run, `random_directions` the control.
        comparisons: of COMPARISONS.
        split: of the images for interpretability.
        n_selection: its first images, with their labels: units, thresholds and probes are chosen on them.
        n_measured: the next images, for the numbers.
        n_objects: concepts that are whole objects ("red ring"), the most frequent ones, beside all attributes.
        min_count: images that carry a concept, and that lack it, at least; on the selection images.
        fit_records: cached records that PCA is fitted to, at most. Both dictionaries were trained on all of them.
        ig_steps: points of the integral of Integrated Gradients.
        shap_permutations: orders of the patches that SHAP averages over, each forwards and backwards.
        hidden: hidden units of the MLP probe.
        unit_counts: hallucination: how many units are made weaker together, tried with each of
            `mitigation.strengths`. A method with one direction tries `direction_strengths`, and heads
            `mitigation.head_counts`: all lists give the same number of settings.
        mitigation, control: sizes and limits of the two other comparisons; keys are explained in
            `cmma/mitigation/config.py` and `cmma/control/config.py`. Their `published`, `selections`, `candidates`,
            `beam` and `encoder` are not used here.
        n_bootstrap: resamples behind the intervals. batch_size: samples in one forward pass.
        seed: of what is drawn: probes, random directions, orders of patches, resampling.
    """

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    comparisons: list[str] = field(default_factory=lambda: list(COMPARISONS))
    split: str = "balanced"
    n_selection: int = 40
    n_measured: int = 40
    n_objects: int = 4
    min_count: int = 3
    fit_records: int = 131_072
    ig_steps: int = 16
    shap_permutations: int = 1
    hidden: int = 64
    unit_counts: list[int] = field(default_factory=lambda: [1, 2, 4])
    direction_strengths: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    mitigation: MitigationConfig = field(default_factory=_mitigation)
    control: ControlConfig = field(default_factory=_control)
    n_bootstrap: int = 2000
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for each in self.methods:
            one_of("baselines.methods", each, METHODS)
        for each in self.comparisons:
            one_of("baselines.comparisons", each, COMPARISONS)
        if "msae" not in self.methods:
            raise ConfigError("baselines.methods lacks msae, which every baseline is compared with; add it")
        for name in ("min_count", "fit_records", "ig_steps", "shap_permutations", "hidden", "n_bootstrap",
                     "batch_size"):
            positive(f"baselines.{name}", getattr(self, name))
        for name in ("n_selection", "n_measured"):
            at_least(f"baselines.{name}", getattr(self, name), 2)
        at_least("baselines.n_objects", self.n_objects, 0)
        for name in ("unit_counts", "direction_strengths"):
            for value in getattr(self, name):
                positive(f"baselines.{name}", value)
        counts = {
            "unit_counts × mitigation.strengths": len(self.unit_counts) * len(self.mitigation.strengths),
            "direction_strengths": len(self.direction_strengths),
            "mitigation.head_counts": len(self.mitigation.head_counts),
        }
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {n}" for name, n in counts.items())
            raise ConfigError(f"baselines: every method tries the same number of settings, and these differ: {listed}")

    @property
    def settings_tried(self) -> int:
        """Settings that every method may try on the calibration images."""
        return len(self.direction_strengths)
