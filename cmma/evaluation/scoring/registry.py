"""The metrics of `cmma score`, in one place. Plain data: nothing heavy is imported until a metric runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        module: module of `cmma.evaluation.scoring` whose function `run(job)` computes it.
        predictions, references: what the two inputs are; empty references: the metric needs none.
        options: fields of `ScoreConfig` that it heeds beyond those that all do.
        variants: values of `metric.variant`, the usual one first.
        encoder: the dual encoder (a file in conf/model/) unless `metric.encoder` names another; empty = it uses none.
        needs_weights: whether `metric.weights` has to be given.
    """

    module: str
    predictions: str
    references: str
    options: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    encoder: str = ""
    needs_weights: bool = False


_ENCODER = ("encoder", "encoder_source", "batch_size")
_CAPTIONS = "captions.jsonl"
_SCENES = "scenes.jsonl or tars of prepared data"

METRICS: dict[str, MetricSpec] = {
    "chair": MetricSpec(
        "chair", _CAPTIONS, "objects.jsonl or COCO annotation folder",
        ("normalizer", "synonyms", "unfinished", "max_new_tokens", "per_sample"),
    ),
    "pope": MetricSpec("pope", "answers.jsonl", "questions.jsonl", ("per_sample",)),
    "amber": MetricSpec(
        "amber", "responses.json", "AMBER's annotations.json, the other released files beside it",
        ("variant", "per_sample"), ("vectors", "words"),
    ),
    "scene": MetricSpec("scene", _CAPTIONS, _SCENES, ("per_sample",)),
    "controllability": MetricSpec("controllability", "trials.jsonl", _SCENES, ("per_sample",)),
    "bleu": MetricSpec(
        "bleu", _CAPTIONS, "captions.jsonl or COCO annotation folder", ("variant",), ("sacrebleu", "coco")
    ),
    "clip_score": MetricSpec(
        "clip_score", "captions.jsonl or image folder", "image folder or captions.jsonl",
        ("captions", "per_sample", *_ENCODER), encoder="clip_vit_b32",
    ),
    "fid": MetricSpec(
        "distances", "image folder", "image folder", ("variant", "weights", *_ENCODER),
        ("legacy", "clean", "torchmetrics"), "clip_vit_b32",
    ),
    "kid": MetricSpec(
        "distances", "image folder", "image folder", ("variant", "weights", *_ENCODER),
        ("legacy", "clean", "torchmetrics"), "clip_vit_b32",
    ),
    "cmmd": MetricSpec("distances", "image folder", "image folder", _ENCODER, encoder="clip_vit_l14_336"),
    "ssim": MetricSpec("image_pairs", "image folder", "image folder", ("per_sample",)),
    "lpips": MetricSpec(
        "image_pairs", "image folder", "image folder", ("variant", "weights", "per_sample"), ("alex", "vgg", "squeeze"),
        needs_weights=True,
    ),
    "aesthetic": MetricSpec(
        "aesthetic", "image folder", "", ("weights", "per_sample", *_ENCODER), encoder="clip_vit_l14",
        needs_weights=True,
    ),
}  # fmt: skip
