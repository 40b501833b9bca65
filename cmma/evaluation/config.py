"""What can be configured about the evaluation of a dictionary. A plain dataclass: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass

from cmma.checks import at_least


@dataclass(frozen=True)
class SAEMetricConfig:
    """What `cmma evaluate-sae` measures.

    Attributes:
        pair_samples: held-out samples of the cached activations whose image and text codes are compared, at most.
        splice_samples: samples on which the model runs with the dictionary in place of its activations; 0 = none.
        split: split of those; never the one that the dictionary was trained on. Null = `balanced` in the shapes world,
            `held_out` elsewhere.
        second_seed: another `seed` of the same `cmma train-sae`, whose dictionary shows how well two of them agree on
            one modality; null = none.
        encoder: name of a dual-encoder model (a file in conf/model/) behind monosemanticity; not the model itself.
        block: retrieval is measured among this many pairs.
        batch_size: samples in one forward pass.
        n_bootstrap: resamples behind the intervals.
    """

    pair_samples: int = 400
    splice_samples: int = 200
    split: str | None = None
    second_seed: int | None = None
    encoder: str = "toy_clip"
    block: int = 100
    batch_size: int = 25
    n_bootstrap: int = 2000

    def __post_init__(self) -> None:
        for name in ("pair_samples", "block"):
            at_least(f"sae_metric.{name}", getattr(self, name), 2)
        at_least("sae_metric.splice_samples", self.splice_samples, 0)
        for name in ("batch_size", "n_bootstrap"):
            at_least(f"sae_metric.{name}", getattr(self, name), 1)
