"""How a model behaves when a dictionary stands in for its activations: reconstructions replace the records of a layer.

What the dictionary does not explain is dropped on the way, so the model sees only what it does explain. A loss is read
between two references: recovered is 1 where the model behaves as in the clean run, and 0 where as in a run in which
every record is the mean of its modality (or zero).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from cmma.causal.queries import Query, caption_queries, question_queries
from cmma.causal.readout import AnswerReadout, batches
from cmma.console import progress
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.evaluation.clip_score import cosines
from cmma.evaluation.embeddings import IMAGE_SITE, TEXT_SITE
from cmma.evaluation.retrieval import retrieve
from cmma.hooks import TokenEdit, Trace
from cmma.hooks.edit import EditFunction
from cmma.hooks.resume import EditedPasses
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_mean, bootstrap_ratio

Tokens = Literal["all", "visual", "textual"]
"""Whose records are replaced."""
Columns = dict[str, np.ndarray]
"""What is known of the queries under one condition, one row per query."""
CLEAN, MEAN, ZERO = "clean", "mean ablation", "zero ablation"
REFERENCES = {MEAN: "recovered", ZERO: "recovered_from_zero"}
"""Conditions that stand for no information at a layer, and what a loss recovered from them is called."""


class Behaviour(ABC):
    """What one kind of model does, as a loss per query with other numbers beside it.

    Attributes:
        loss: name of the metric whose recovery is measured; `columns` has it for each query under "loss".
    """

    loss: str

    def __init__(self, model: MultimodalModel) -> None:
        self.model: Any = model

    @abstractmethod
    def output(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """What is read from one forward pass, [B, …]."""

    @abstractmethod
    def columns(self, output: Tensor, clean: Tensor) -> Columns:
        """Numbers per query from an output and that of the clean run of the same batch."""

    @abstractmethod
    def metrics(self, columns: Columns, n_resamples: int) -> dict[str, Interval]:
        """Metrics by name from the columns of all queries; each query is of another image."""


class Answers(Behaviour):
    """Teacher-forced answers of a generative model: cross-entropy and KL divergence per token, and greedy accuracy.

    Args:
        what: "answer" to a question, or "caption".
    """

    def __init__(self, model: MultimodalModel, what: str) -> None:
        super().__init__(model)
        self.what, self.loss = what, f"{what}_cross_entropy"
        self._readout = AnswerReadout(model, "log_probability")
        self._ids_BC = self._answer_BC = torch.empty(0)

    def output(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Log-probabilities [B, C, V]; which of them are the answer's is the same in every pass of a batch."""
        logits_BCV, self._ids_BC, self._answer_BC = self._readout.answer_logits(batch, queries)
        return logits_BCV.float().log_softmax(dim=-1)

    def columns(self, output: Tensor, clean: Tensor) -> Columns:
        """`loss` in nats and `kl` of the clean from this distribution, sums over `tokens`; `correct`."""
        log_p_BC = output.gather(-1, self._ids_BC[..., None])[..., 0]
        kl_BC = (clean.exp() * (clean - output)).sum(dim=-1)
        right_BC = output.argmax(dim=-1) == self._ids_BC
        found = {
            "loss": torch.where(self._answer_BC, -log_p_BC, 0).sum(1), "tokens": self._answer_BC.sum(1),
            "kl": torch.where(self._answer_BC, kl_BC, 0).sum(1), "correct": (right_BC | ~self._answer_BC).all(1),
        }
        return {name: value.cpu().numpy() for name, value in found.items()}

    def metrics(self, columns: Columns, n_resamples: int) -> dict[str, Interval]:
        """Cross-entropy and KL per token; accuracy of whole answers (a caption has many right forms)."""
        found = {
            self.loss: bootstrap_ratio(columns["loss"], columns["tokens"], n_resamples),
            f"{self.what}_kl": bootstrap_ratio(columns["kl"], columns["tokens"], n_resamples),
        }
        if self.what == "answer":
            found["answer_accuracy"] = bootstrap_mean(columns["correct"], n_resamples)
        return found


class Matching(Behaviour):
    """Cosine of an image with its own caption in a dual encoder, and retrieval among the captions."""

    loss = "pair_cosine"

    def __init__(self, model: MultimodalModel, block: int) -> None:
        super().__init__(model)
        self._block = block

    def output(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Embeddings [B, 2, E] of images and texts."""
        with Trace(self.model, [IMAGE_SITE, TEXT_SITE]) as acts:
            self.model(**batch)
        return torch.stack([acts[site].flatten(1).float() for site in (IMAGE_SITE, TEXT_SITE)], dim=1)

    def columns(self, output: Tensor, clean: Tensor) -> Columns:
        """`image` and `text` embeddings, and minus their cosine as `loss`."""
        image_BE, text_BE = output.cpu().numpy().swapaxes(0, 1)
        return {"loss": -cosines(image_BE, text_BE), "image": image_BE, "text": text_BE}

    def metrics(self, columns: Columns, n_resamples: int) -> dict[str, Interval]:
        """Cosine of true pairs and R@1 in both directions."""
        found = retrieve(columns["image"], columns["text"], self._block)
        recalls = {f"{way}_r@1": interval for way, interval in found.recall(1, n_resamples).items()}
        return {self.loss: bootstrap_mean(-columns["loss"], n_resamples), **recalls}


class Denoising(Behaviour):
    """Denoising loss of a diffusion model under the caption, each sample at its own timestep and noise."""

    loss = "denoising_loss"

    def output(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Mean squared error of the predicted noise, [B]."""
        return self.model.denoising_error(batch)

    def columns(self, output: Tensor, clean: Tensor) -> Columns:
        """`loss` alone."""
        return {"loss": output.cpu().numpy()}

    def metrics(self, columns: Columns, n_resamples: int) -> dict[str, Interval]:
        """The mean loss."""
        return {self.loss: bootstrap_mean(columns["loss"], n_resamples)}


def behaviours(
    model: MultimodalModel, samples: Sequence[Sample], block: int = 100
) -> list[tuple[Behaviour, list[Query]]]:
    """What this model can be measured by on these samples, with one query per sample.

    Raises:
        DataError: a generative model, and neither questions nor captions.
    """
    captions = caption_queries(sample for sample in samples if sample.caption)
    if model.kind == "dual_encoder":
        return [(Matching(model, block), captions)]
    if model.kind == "diffusion":
        return [(Denoising(model), captions)]
    found: list[tuple[Behaviour, list[Query]]] = []
    if questions := question_queries(samples, per_sample=1):
        found.append((Answers(model, "answer"), questions))
    if model.captions and captions:
        asked = [Query(query.sample, model.spec.prompt, query.text) for query in captions]
        found.append((Answers(model, "caption"), asked))
    if not found:
        raise DataError(f"{model.spec.name} needs questions or captions to be spliced, and the samples have none")
    return found


def reconstruct(sae: SparseAutoencoder) -> EditFunction:
    """Records → what the dictionary makes of them. Inside a pass there is no cross-modal context."""
    return lambda acts_ND, modality_N, where: sae(acts_ND.to(sae.W_dec), modality_N).reconstruction_BD


def constant(value_MD: Tensor) -> EditFunction:
    """Records → one vector per modality; `mean_MD` of some records, or zero."""
    return lambda acts_ND, modality_N, where: value_MD.to(acts_ND)[modality_N.long()]


@dataclass(frozen=True)
class Spliced:
    """Queries under every condition.

    Attributes:
        behaviour: whose columns these are.
        clean: columns of the unedited run.
        edited: (whose records, condition) → columns; the `REFERENCES` are among the conditions.
    """

    behaviour: Behaviour
    clean: Columns
    edited: Mapping[tuple[Tokens, str], Columns]

    def rows(self, n_resamples: int = RESAMPLES) -> Iterator[tuple[Tokens, str, str, Interval]]:
        """(whose records, condition, metric, interval): the metrics, and the loss recovered between the references."""
        loss, clean = self.behaviour.loss, self.behaviour.metrics(self.clean, n_resamples)
        yield from ((tokens, CLEAN, metric, clean[metric]) for tokens in get_args(Tokens) for metric in clean)
        for (tokens, condition), columns in self.edited.items():
            for metric, interval in self.behaviour.metrics(columns, n_resamples).items():
                yield tokens, condition, metric, interval
            for reference, name in REFERENCES.items():
                if condition not in REFERENCES:
                    ablated = self.edited[tokens, reference]["loss"]
                    interval = recovered(columns["loss"], self.clean["loss"], ablated, n_resamples)
                    yield tokens, condition, f"{loss}_{name}", interval


@torch.no_grad()
def splice_in(
    model: MultimodalModel, layer: int, behaviour: Behaviour, queries: Sequence[Query],
    replacements: Mapping[str, EditFunction], batch_size: int = 25,
) -> Spliced:
    """Run the queries clean and with the records of `layer` replaced: all, the visual, the textual ones.

    Args:
        replacements: condition → what becomes of the records.
    """
    parts: dict[tuple[Tokens, str], list[Columns]] = {}
    clean: list[Columns] = []
    with progress(f"Splicing at layer {layer}", total=len(queries)) as bar:
        for batch, some in batches(model, queries, batch_size):
            passes = EditedPasses(model, layer, batch, partial(behaviour.output, queries=some))
            unedited = passes()  # resumed as the others are, so that what an edit does not reach is equal to the bit
            clean.append(behaviour.columns(unedited, unedited))
            for tokens in get_args(Tokens):
                for condition, edit in replacements.items():
                    output = passes(TokenEdit(edit, tokens))
                    parts.setdefault((tokens, condition), []).append(behaviour.columns(output, unedited))
            bar.advance(len(some))
    return Spliced(behaviour, _joined(clean), {key: _joined(columns) for key, columns in parts.items()})


def recovered(
    loss_N: np.ndarray, clean_N: np.ndarray, ablated_N: np.ndarray, n_resamples: int = RESAMPLES
) -> Interval:
    """(L_ablated − L) / (L_ablated − L_clean) from losses per image; 1 = as the clean run, 0 = as the ablation.

    Undefined where the ablation does no harm: there is nothing to recover.
    """
    harm_N = ablated_N.astype(np.float64) - clean_N
    if harm_N.sum() <= 0:
        return Interval(float("nan"), float("nan"), float("nan"), len(harm_N), "undefined: the ablation does no harm")
    return bootstrap_ratio(ablated_N - loss_N.astype(np.float64), harm_N, n_resamples)


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
