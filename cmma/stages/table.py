"""The stages and what each depends on. Plain data: `cmma --help` reads it, so nothing is imported here.

A stage's module is `cmma.stages.<name with underscores>`; it has one function `run(stage: Stage) -> summary`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageSpec:
    """One row of the pipeline.

    Attributes:
        help: one line for the user.
        sections: the parts of the configuration that decide the result.
        parents: stages whose artifacts it reads directly.
        version: schema version of its artifacts; raise it when their meaning changes.
        parallel: whether it can use several processes.
        chained: whether `cmma run` includes it.
    """

    help: str
    sections: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    version: int = 1
    parallel: bool = False
    chained: bool = True


STAGES: dict[str, StageSpec] = {
    "prepare-data": StageSpec("generate or read samples and write them as webdataset tars", ("dataset",), version=2),
    "cache-activations": StageSpec(
        "run the model and store activation records", ("model", "activations"), ("prepare-data",), parallel=True
    ),
    "train-sae": StageSpec(
        "train a sparse autoencoder on cached activations",
        ("layer", "sae", "optim", "seed"),
        ("cache-activations",),
        parallel=True,
    ),
    "interpret": StageSpec(
        "classify latents and collect their examples and concepts", ("interpret", "seed"), ("train-sae",)
    ),
    "trace": StageSpec(
        "which activations, positions, heads or features carry an answer", ("model", "trace"), ("prepare-data",)
    ),
    "intervene": StageSpec(
        "ablate, amplify, substitute, combine and clamp features", ("intervention",), ("interpret",), version=2
    ),
    "control": StageSpec(
        "change one factor of what the model makes by dictionary features (paper, Table 2)",
        ("control",),
        ("train-sae",),
        chained=False,
    ),
    "mitigate": StageSpec(
        "make hallucination-prone features weaker, beside published ways and controls",
        ("mitigation",),
        ("train-sae",),
        chained=False,
    ),
    "baselines": StageSpec(
        "M-SAE beside six baselines: interpretability, hallucination, control",
        ("baselines",),
        ("train-sae",),
        chained=False,
    ),
    "build-cmig": StageSpec(
        "measure feature interactions and build the cross-modal graph", ("cmig",), ("interpret",), version=2,
        parallel=True,
    ),
    "phases": StageSpec(
        "classes and cross-modal activity of every layer, over seeds and models, and tests of phases",
        ("phases",),
        ("prepare-data",),
        chained=False,
    ),
    "evaluate-sae": StageSpec(
        "reconstruction, codes of image–text pairs, and the model with the dictionary spliced in, beside controls",
        ("sae_metric", "seed"),
        ("train-sae",),
    ),
    "evaluate": StageSpec(
        "hallucination, question accuracy, CLIP-Score, Fréchet distance",
        ("model", "metric"),
        ("prepare-data",),
        parallel=True,
    ),
    "report": StageSpec("tables, figures and the feature browser as one static folder", (), ("prepare-data",)),
}

# What the report shows when it exists; it waits for none of them.
REPORTED = (
    "cache-activations", "train-sae", "interpret", "trace", "intervene", "control", "mitigate", "baselines",
    "build-cmig", "phases", "evaluate-sae", "evaluate",
)
