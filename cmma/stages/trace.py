"""trace: which activations, positions, heads or features carry an answer, by one of many methods."""

from __future__ import annotations

from typing import Any

from cmma import figures
from cmma.causal.findings import Dictionary
from cmma.causal.methods.registry import run_method
from cmma.models import load_model
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split


def run(stage: Stage) -> dict[str, Any]:
    """Tables, figures and tensors of the method; its headline numbers are the summary."""
    config = stage.config.trace
    samples = load_split(stage.parents["prepare-data"], config.split)
    dictionary = None
    if "train-sae" in stage.parents:
        sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
        dictionary = Dictionary(sae, stage.config.sae_layer())
    found = run_method(load_model(stage.config.model, stage.device), samples, config, dictionary)
    for name, table in found.tables.items():
        stage.artifact.write_table(f"{name}.parquet", table)
    if found.tensors:
        stage.artifact.write_tensors("trace.safetensors", found.tensors)
    for name, image in found.images.items():
        stage.artifact.write_image(f"images/{name}.png", image)
    stage.artifact.write_json("figures.json", figures.to_json(found.figures))
    return {name: None if value != value else value for name, value in found.summary.items()}  # NaN has no JSON form
