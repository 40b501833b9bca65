"""Run a model over samples and collect their activation records (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmma.activations.quota import choose_records
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.hooks.trace import Trace
from cmma.modality import Modality
from cmma.models.base import MultimodalModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Capture:
    """What is kept of each sample.

    Attributes:
        layers: layers to record.
        visual, textual, joint, seed: the quota (`choose_records`).
        context: pooled context vectors per sample and modality; 0 = none.
        dtype: of the stored vectors.
        batch_size: samples in one forward pass.
        text: caption, question or prompt (`texts_of`).
    """

    layers: Sequence[int]
    visual: int
    textual: int
    joint: bool
    seed: int
    context: int
    dtype: torch.dtype
    batch_size: int
    text: str


def texts_of(samples: Sequence[Sample], text: str, prompt: str) -> tuple[list[str], list[str] | None]:
    """What a generative model reads: instructions, and answers where they are teacher-forced.

    Raises:
        DataError: `question` is asked for and a sample has none.
    """
    if text == "prompt":
        return [prompt] * len(samples), None
    if text == "caption":
        return [prompt] * len(samples), [sample.caption for sample in samples]
    first = []
    for sample in samples:
        if not sample.questions:
            raise DataError(
                f"sample {sample.key} has no question; take data with meta['questions'], or activations.text=caption "
                "with a model that writes captions"
            )
        first.append(sample.questions[0])
    return [entry.question for entry in first], [entry.answer for entry in first]


@torch.inference_mode()
def capture(
    model: MultimodalModel, samples: Sequence[Sample], indices: Sequence[int], what: Capture,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """The activation records of some samples, as the tensors of one shard (`docs/artifacts.md`, Activation shards).

    Args:
        model: any adapter.
        samples: in the order of `indices`.
        indices: index of each sample in the data set.
        what: quota, layers and format.
        done: called with the number of samples after each forward pass.

    Raises:
        ConfigError: layers whose records do not correspond (a U-Net's blocks at different resolutions).
    """
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(samples), what.batch_size):
        rows = slice(start, start + what.batch_size)
        parts.append(_capture_batch(model, samples[rows], indices[rows], what))
        done(len(samples[rows]))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _capture_batch(
    model: MultimodalModel, samples: Sequence[Sample], indices: Sequence[int], what: Capture
) -> dict[str, Tensor]:
    texts, answers = None, None
    if model.kind == "generative":
        texts, answers = texts_of(samples, what.text, model.spec.prompt)
    batch = model.collate(samples, texts, answers)
    sites = {entry.site for layer in what.layers for entry in model.record_sites(layer)}
    with Trace(model, sorted(sites)) as acts:
        model(**batch)
    index_B = torch.as_tensor(list(indices))
    tensors: dict[str, Tensor] = {}
    order = None
    for layer in what.layers:
        records = model.records(acts, batch, layer)
        if order is None:
            kept_BS = choose_records(records.modality, list(indices), what.visual, what.textual, what.joint, what.seed)
            row_N, column_N = kept_BS.nonzero(as_tuple=True)
            modality_N = records.modality.cpu()[row_N, column_N]
            order = torch.argsort(row_N * len(Modality) + modality_N, stable=True)
            row_N, column_N = row_N[order], column_N[order]
            tensors["modality"] = modality_N[order].to(torch.int8)
            tensors["sample"] = index_B[row_N]
            tensors["position"] = records.position.cpu()[row_N, column_N].to(torch.int32)
        vectors = records.vectors
        if vectors.shape[1] != kept_BS.shape[1]:
            raise ConfigError(
                f"layers {what.layers[0]} and {layer} of {model.spec.name} hold different numbers of tokens (maps of "
                f"different sizes) and cannot share records; cache them apart, for example activations.layers=[{layer}]"
            )
        tensors[f"layer.{layer}"] = vectors[row_N.to(vectors.device), column_N.to(vectors.device)].to("cpu", what.dtype)
        if what.context:
            tensors[f"context.{layer}"] = model.context(acts, batch, layer, what.context).to("cpu", what.dtype)
    if what.context:
        tensors["context_sample"] = index_B
    return tensors
