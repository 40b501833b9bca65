"""sparse_concepts: SpLiCE (Bhalla et al. 2024, arXiv 2402.10376), judged by the concepts that are really there.

z = σ(image − mean image) ≈ C w with w ≥ 0 sparse, σ the normalisation and C the texts of the concepts, centred by their
own mean and normalised: min ‖C w − z‖² + 2 λ ‖w‖₁.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from cmma.causal.concept_texts import embed_concepts, labels_of, require_dual_encoder
from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.evaluation.embeddings import embed
from cmma.figures import Curves, Line
from cmma.models.base import MultimodalModel
from cmma.statistics.bootstrap import Interval, bootstrap_mean, bootstrap_ratio

METRICS = ("precision", "recall", "cosine", "precision_of_strangers")


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Precision and recall of the concepts with a weight, over penalties; summary: where their F1 is highest.

    The first half of the samples gives the mean image, the other half is decomposed. The control counts the labels of
    the next image as the truth.

    Raises:
        ConfigError: the model is no dual encoder. DataError: fewer than four samples, or none with labels.
    """
    require_dual_encoder(model, config.method)
    options = config.sparse_concepts
    samples = [sample for sample in samples if sample.labels][: 2 * config.max_samples]
    if len(samples) < 4:
        raise DataError(f"sparse_concepts needs at least 4 samples with labels, not {len(samples)}")
    labels = labels_of(samples)
    image_NE = normalised(embed(model, samples).image_ND.astype(np.float64))
    half = len(samples) // 2
    concept_CE = embed_concepts(model, labels, options.template, samples[0])
    concept_CE = normalised(concept_CE - concept_CE.mean(axis=0))
    centred_NE = normalised(image_NE[half:] - image_NE[:half].mean(axis=0))
    truth_NC = np.array([[label in set(sample.labels) for label in labels] for sample in samples[half:]])

    rows, tables = [], {}
    for penalty in options.penalties:
        weight_NC = decompose(concept_CE, centred_NE, penalty)
        measured = _measure(weight_NC, concept_CE, centred_NE, truth_NC, config.seed)
        rows += [{"penalty": penalty, "metric": name, **each.as_dict()} for name, each in measured.items()]
        tables[penalty] = pd.DataFrame(weight_NC, columns=labels).assign(key=[s.key for s in samples[half:]])
    table = pd.DataFrame(rows)
    wide = table.pivot(index="penalty", columns="metric", values="value")
    f1 = 2 * wide["precision"] * wide["recall"] / (wide["precision"] + wide["recall"])
    best = f1.idxmax() if f1.notna().any() else options.penalties[0]
    return Findings(
        summary={
            "method": config.method, "concepts": len(labels), "images": len(truth_NC), "penalty": float(best),
            "f1": float(f1[best]), **{name: float(wide.loc[best, name]) for name in (*METRICS, "nonzeros")},
        },
        tables={"penalties": table, "weights": tables[best]},
        figures=(_curves(table, len(truth_NC)),),
    )  # fmt: skip


def normalised(vectors_NE: np.ndarray) -> np.ndarray:
    """Rows divided by their norms."""
    return vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)


def decompose(concept_CE: np.ndarray, image_NE: np.ndarray, penalty: float) -> np.ndarray:
    """Weights float64[N, C] ≥ 0 that minimise ‖C w − z‖² + 2 λ ‖w‖₁ for every image.

    scikit-learn's objective is ‖C w − z‖² / (2 E) + α ‖w‖₁ with E coordinates: α = λ / E.
    """
    lasso = Lasso(alpha=penalty / image_NE.shape[1], positive=True, fit_intercept=False, max_iter=20_000, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the penalties of interest converge well
        return np.stack([lasso.fit(concept_CE.T, image_E).coef_.copy() for image_E in image_NE])


def _measure(
    weight_NC: np.ndarray, concept_CE: np.ndarray, image_NE: np.ndarray, truth_NC: np.ndarray, seed: int
) -> dict[str, Interval]:
    used_NC = weight_NC > 0
    sum_NE = weight_NC @ concept_CE
    norm_N = np.linalg.norm(sum_NE, axis=1)
    cosine_N = np.divide((sum_NE * image_NE).sum(axis=1), norm_N, out=np.zeros(len(norm_N)), where=norm_N > 0)
    strangers_NC = np.roll(truth_NC, 1, axis=0)
    ratios = {
        "precision": (used_NC & truth_NC, used_NC), "recall": (used_NC & truth_NC, truth_NC),
        "precision_of_strangers": (used_NC & strangers_NC, used_NC),
    }  # fmt: skip
    found = {name: bootstrap_ratio(top.sum(1), bottom.sum(1), seed=seed) for name, (top, bottom) in ratios.items()}
    return found | {
        "cosine": bootstrap_mean(cosine_N, seed=seed), "nonzeros": bootstrap_mean(used_NC.sum(axis=1), seed=seed)
    }


def _curves(table: pd.DataFrame, n: int) -> Curves:
    """The metrics over the mean number of concepts in use."""
    nonzeros = table[table["metric"] == "nonzeros"].set_index("penalty")["value"].sort_values()
    wide = {
        end: table.pivot(index="penalty", columns="metric", values=end).loc[nonzeros.index].astype(float)
        for end in ("value", "low", "high")
    }
    return Curves(
        title="sparse concepts (SpLiCE)", about="of the concepts in use, and of the image", x_label="concepts in use",
        x=nonzeros.tolist(), n=n,
        lines=[
            Line(name.replace("_", " "), *(wide[end][name].to_numpy() for end in ("value", "low", "high")))
            for name in METRICS
        ],
    )  # fmt: skip
