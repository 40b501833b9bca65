"""What can be configured about `cmma score`. Plain data: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cmma.checks import at_least, one_of
from cmma.errors import ConfigError
from cmma.evaluation.scoring.registry import METRICS

NORMALIZERS = ("pattern", "wordnet", "table")
_COMMON = ("metric", "predictions", "references", "n_bootstrap")


@dataclass(frozen=True)
class ScoreConfig:
    """One run of `cmma score`; there `metric=NAME` stands for `score.metric`, and `metric.KEY` for `score.KEY`.

    Attributes:
        metric: name of the metric (docs/metrics.md).
        predictions: what is scored: a file or a folder, as the metric says.
        references: what it is scored against.
        per_sample: JSONL file for the values of single samples; null = none.
        normalizer: CHAIR: `pattern` (the original), `wordnet` (OPERA, lmms-eval) or `table` (words as the table has
            them and their plurals, longest phrase first, none of the original's quirks).
        synonyms: CHAIR: a word list, in the public file's format or in ours; null = COCO's 80 categories.
        unfinished: CHAIR: `keep` or `drop` what follows the last full stop of a caption that was cut off.
        max_new_tokens: CHAIR: length limit that the captions were made with; recorded, since it decides the result.
        variant: which of several definitions; null = the usual one.
        weights: file of weights: Inception (FID, KID), the trunk (LPIPS) or the head (aesthetic).
        encoder: dual encoder, a file in conf/model/; null = the metric's own.
        encoder_source: folder with the encoder's weights, in place of the hub.
        captions: CLIP-Score: JSONL with reference captions, for RefCLIPScore.
        batch_size: images in one forward pass.
        n_bootstrap: resamples behind the intervals.
    """

    metric: str = "chair"
    predictions: str = ""
    references: str = ""
    per_sample: str | None = None
    normalizer: str = "pattern"
    synonyms: str | None = None
    unfinished: str = "keep"
    max_new_tokens: int | None = None
    variant: str | None = None
    weights: str | None = None
    encoder: str | None = None
    encoder_source: str | None = None
    captions: str | None = None
    batch_size: int = 32
    n_bootstrap: int = 10_000

    def __post_init__(self) -> None:
        one_of("metric", self.metric, METRICS)
        one_of("metric.normalizer", self.normalizer, NORMALIZERS)
        one_of("metric.unfinished", self.unfinished, ("keep", "drop"))
        at_least("metric.batch_size", self.batch_size, 1)
        at_least("metric.n_bootstrap", self.n_bootstrap, 1)
        spec = METRICS[self.metric]
        if self.variant is not None and spec.variants:
            one_of("metric.variant", self.variant, spec.variants)
        for field in fields(self):
            if getattr(self, field.name) != field.default and field.name not in (*_COMMON, *spec.options):
                raise ConfigError(f"metric={self.metric} has no metric.{field.name}; it has "
                                  f"{', '.join(f'metric.{name}' for name in (*spec.options, 'n_bootstrap'))}")
