"""evaluate: what the model says and how well: hallucination, answers, CLIP-Score, retrieval, Fréchet distance."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch.distributed as dist
from PIL import Image

from cmma.artifacts.files import atomic_path, read_json, write_json
from cmma.config import load_group
from cmma.console import progress, warn
from cmma.data.samples import Question, Sample
from cmma.errors import DataError
from cmma.evaluation.captioning import answer_questions, caption_samples
from cmma.evaluation.chair import chair
from cmma.evaluation.clip_score import clip_score, ref_clip_score
from cmma.evaluation.embeddings import Embeddings, embed
from cmma.evaluation.frechet import Moments, distance_name, frechet_distance
from cmma.evaluation.prompted_images import make_images, prompt_accuracy
from cmma.evaluation.questions import Answered, score_questions
from cmma.evaluation.retrieval import retrieve
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY, scene_hallucination, visible_shapes
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.spec import ModelSpec
from cmma.stages.prepare_data import splits_of
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split
from cmma.statistics.bootstrap import Interval, bootstrap_mean

Row = dict[str, Any]


def run(stage: Stage) -> dict[str, Any]:
    """Measure the model on every evaluation split; summary: the headline metrics, and what was not measured and why."""
    metric, data = stage.config.metric, stage.parents["prepare-data"]
    splits: list[str] = [split for split in ("balanced", "counter", "held_out") if split in splits_of(data)]
    samples = {split: load_split(data, split, 0, metric.n_samples) for split in splits}
    model = load_model(stage.config.model, stage.device)
    said = {split: _generate(stage, model, split, samples[split]) for split in splits}
    made = {split: _make_images(stage, model, split, samples[split][: metric.n_images]) for split in splits}
    if stage.world > 1:
        dist.barrier()
    if stage.rank != 0:
        return {}

    rows: list[Row] = []
    captions, answers = [], []
    for split in splits:
        if model.kind == "generative":
            texts, answered = _merge(stage, said[split])
            answers += [{"split": split, **entry} for entry in answered]
            if model.captions:
                captions += [
                    {"split": split, "key": sample.key, "caption": text, "reference": sample.caption}
                    for sample, text in zip(samples[split], texts, strict=True)
                ]
                rows += _caption_rows(split, texts, samples[split], metric.n_bootstrap)
            rows += _answer_rows(split, answered, metric.n_bootstrap)
        rows += _image_rows(stage, split, made[split])
    not_measured = _without_captions(model, made)
    written = {entry["key"]: entry["caption"] for entry in captions}
    not_measured |= _embedding_rows(stage, model, samples, written, made, rows)
    shutil.rmtree(stage.artifact.path("parts"), ignore_errors=True)
    stage.artifact.write_jsonl("captions.jsonl", captions)
    stage.artifact.write_jsonl("answers.jsonl", answers)
    stage.artifact.write_table("metrics.parquet", pd.DataFrame(rows))
    headline = {f"{row['split']}/{row['metric']}": row["value"] for row in rows if row["headline"]}
    return {"metrics": headline, "samples": {s: len(v) for s, v in samples.items()}, "not_measured": not_measured}


# Generation: chunks of samples, each written whole, so that ranks share the work and a killed run goes on. -----------


def _generate(stage: Stage, model: MultimodalModel, split: str, samples: Sequence[Sample]) -> list[str]:
    """Captions and answers of this rank's chunks; returns the names of all parts of the split, in order."""
    if model.kind != "generative":
        return []
    metric = stage.config.metric
    questions_per_sample = -(-metric.n_questions // max(1, len(samples)))
    names = []
    for chunk, start in enumerate(range(0, len(samples), metric.batch_size)):
        name = f"parts/{split}-{chunk:05d}.json"
        names.append(name)
        if chunk % stage.world != stage.rank or stage.artifact.path(name).is_file():
            continue
        some = samples[start : start + metric.batch_size]
        texts = caption_samples(model, some, metric.batch_size, metric.max_new_tokens) if model.captions else []
        answered = answer_questions(model, some, metric.batch_size, max_questions=questions_per_sample * len(some))
        write_json(stage.artifact.path(name), {"captions": texts, "answers": [
            {"key": entry.image, "kind": entry.question.kind, "question": entry.question.question,
             "answer": entry.question.answer, "prediction": entry.prediction} for entry in answered
        ]})
    return names


def _make_images(stage: Stage, model: MultimodalModel, split: str, samples: Sequence[Sample]) -> list[Sample]:
    """This rank's images from the samples' captions, kept as `images/SPLIT/KEY.png`; returns all samples with theirs.

    Empty for a model that makes none.
    """
    if model.kind != "diffusion":
        return []
    metric = stage.config.metric
    paths = [stage.artifact.path(f"images/{split}/{sample.key}.png") for sample in samples]
    with progress("Making images", total=len(samples)) as bar:
        for chunk, start in enumerate(range(0, len(samples), metric.batch_size)):
            rows = slice(start, start + metric.batch_size)
            if chunk % stage.world == stage.rank and not all(path.is_file() for path in paths[rows]):
                images = make_images(model, samples[rows], metric.image_steps, metric.guidance)
                for path, image in zip(paths[rows], images, strict=True):
                    with atomic_path(path) as temporary:
                        image.save(temporary, "PNG")
            bar.advance(len(paths[rows]))
    if stage.world > 1:
        dist.barrier()
    return [replace(sample, image=_open(path)) for sample, path in zip(samples, paths, strict=True)]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _merge(stage: Stage, names: Sequence[str]) -> tuple[list[str], list[Row]]:
    parts = [read_json(stage.artifact.path(name)) for name in names]
    return [text for part in parts for text in part["captions"]], [entry for part in parts for entry in part["answers"]]


def _without_captions(model: MultimodalModel, made: dict[str, list[Sample]]) -> dict[str, str]:
    """What needs captions or known scenes, and why there are none; empty where there are, and for a dual encoder."""
    if model.kind == "diffusion":
        reasons = {"captions, questions, hallucination": f"{model.spec.name} makes images and writes no text"}
        if not all(sample.objects for some in made.values() for sample in some):
            reasons["prompt accuracy"] = "the scene parser reads images of dataset=shapes only"
        return reasons
    if model.captions or model.kind != "generative":
        return {}
    return {"captions, hallucination": f"{model.spec.name} answers questions and writes no captions"}


# Rows of the metric table. -------------------------------------------------------------------------------------------


def _row(split: str, metric: str, interval: Interval, headline: bool = True) -> Row:
    return {"split": split, "metric": metric, "headline": headline, **interval.as_dict()}


def _plain(split: str, metric: str, value: float, n: int, headline: bool = True) -> Row:
    nothing = float("nan")
    return _row(split, metric, Interval(value, nothing, nothing, n, "no interval"), headline)


def _caption_rows(split: str, texts: Sequence[str], samples: Sequence[Sample], n_bootstrap: int) -> Iterator[Row]:
    if not all(sample.objects for sample in samples):
        return
    scores = chair(texts, [visible_shapes(sample) for sample in samples], SHAPES_VOCABULARY, n_resamples=n_bootstrap)
    for name in ("chair_i", "chair_s", "recall", "mean_words"):
        yield _row(split, name, getattr(scores, name))
    scene = scene_hallucination(texts, samples, n_bootstrap)
    for name in ("objects", "attributes", "relations"):
        yield _row(split, f"hallucination_{name}", getattr(scene, name))
    yield _row(split, "objects_described", scene.described, headline=False)


def _image_rows(stage: Stage, split: str, made: Sequence[Sample]) -> Iterator[Row]:
    """How far the images that were made show what their captions say; nothing where no scenes are known."""
    if not made or not all(sample.objects for sample in made):
        return
    accuracy = prompt_accuracy(
        [sample.caption for sample in made], [sample.image for sample in made], stage.config.metric.n_bootstrap
    )
    for name, interval in accuracy.items():
        yield _row(split, f"prompt_{name}", interval, headline=name in ("object", "relation", "image"))


def _answer_rows(split: str, answered: Sequence[Row], n_bootstrap: int) -> Iterator[Row]:
    if not answered:
        return
    scores = score_questions([
        Answered(entry["key"], Question(entry["question"], entry["answer"], entry["kind"]), entry["prediction"])
        for entry in answered
    ], n_bootstrap)
    yield _row(split, "question_accuracy", scores.accuracy)
    for kind, interval in scores.by_kind.items():
        yield _row(split, f"question_accuracy_{kind}", interval, headline=False)
    if scores.yes_no:
        for name in ("precision", "recall", "f1", "yes_ratio"):
            yield _plain(split, f"yes_no_{name}", getattr(scores.yes_no, name), scores.yes_no.n, headline=False)


def _embedding_rows(
    stage: Stage, model: MultimodalModel, samples: dict[str, list[Sample]], captions: dict[str, str],
    made: dict[str, list[Sample]], rows: list[Row],
) -> dict[str, str]:
    """CLIP-Score, retrieval and Fréchet distance from a dual encoder; returns what could not be measured and why."""
    metric = stage.config.metric
    try:
        encoder = _encoder(stage, model)
    except DataError as error:
        warn(f"CLIP-Score, retrieval and Fréchet distance are not measured: {error}")
        return {"clip_score, retrieval, frechet": str(error)}
    name = encoder.spec.name
    train = load_split(stage.parents["prepare-data"], "train", 0, metric.n_samples)
    train_moments = _image_moments(embed(encoder, train, batch_size=metric.batch_size))
    for split, some in samples.items():
        reference = embed(encoder, some, batch_size=metric.batch_size)
        reference_score = clip_score(reference.image_ND, reference.text_ND)
        rows.append(_mean(split, f"clip_score_reference_{name}", reference_score, metric.n_bootstrap))
        if captions:
            texts = [captions[sample.key] for sample in some]
            text_ND = embed(encoder, some, texts, metric.batch_size).text_ND
            rows.append(_mean(split, f"clip_score_{name}", clip_score(reference.image_ND, text_ND), metric.n_bootstrap))
            with_reference = ref_clip_score(reference.image_ND, text_ND, reference.text_ND[:, None])
            rows.append(_mean(split, f"ref_clip_score_{name}", with_reference, metric.n_bootstrap))
        if model.kind == "dual_encoder" and len(some) > 1:
            found = retrieve(reference.image_ND, reference.text_ND, metric.block)
            for k in (1, 5):
                for direction, interval in found.recall(k, metric.n_bootstrap).items():
                    rows.append(_row(split, f"{direction}_r@{k}_of_{found.block}", interval))
        if made[split]:
            new = embed(encoder, made[split], batch_size=metric.batch_size)
            score = clip_score(new.image_ND, new.text_ND)
            rows.append(_mean(split, f"clip_score_made_{name}", score, metric.n_bootstrap))
            distance = frechet_distance(_image_moments(reference), _image_moments(new), distance_name(name))
            rows.append(_plain(split, f"{distance.name}_made_to_images", distance.value, distance.n_second))
        distance = frechet_distance(train_moments, _image_moments(reference), distance_name(name))
        rows.append(_plain(split, f"{distance.name}_images_to_train", distance.value, distance.n_second))
    return {}


def _encoder(stage: Stage, model: MultimodalModel) -> MultimodalModel:
    """The evaluated model itself when it is a dual encoder, else the one that `metric.encoder` names."""
    if model.kind == "dual_encoder":
        return model
    return load_model(ModelSpec(**load_group("model", stage.config.metric.encoder)), stage.device)


def _image_moments(embeddings: Embeddings) -> Moments:
    return Moments(embeddings.image_ND.shape[1]).update(embeddings.image_ND)


def _mean(split: str, name: str, values_N: np.ndarray, n_bootstrap: int) -> Row:
    return _row(split, name, bootstrap_mean(values_N, n_resamples=n_bootstrap))
