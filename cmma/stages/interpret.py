"""interpret: what each latent stands for: class, concept, examples, direct effect on the logits."""

from __future__ import annotations

from typing import Any

from cmma.features.collect import choose_pages, collect, feature_table
from cmma.features.maps import example_table, logit_effects
from cmma.features.masks import mask_iou
from cmma.features.specialisation import DEAD, class_shares
from cmma.modality import Modality
from cmma.models import load_model
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import interpreted_samples


def run(stage: Stage) -> dict[str, Any]:
    """Describe every latent on samples that the dictionary was not trained on; summary: class shares (Table 1)."""
    config, artifact = stage.config, stage.artifact
    settings, layer, text = config.interpret, config.sae_layer(), config.text()
    samples = interpreted_samples(stage.parents["prepare-data"], config)
    model = load_model(config.model, stage.device)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)

    data = collect(
        model, sae, layer, samples, settings.batch_size, settings.n_examples, text, seed=config.seed
    )
    table = feature_table(
        data, samples, config.sae.tau, config.sae.any, settings.n_bootstrap, seed=config.seed
    )
    pages = choose_pages(table, settings.max_pages)
    concepts = table.set_index("feature").loc[pages, "concept"].dropna().to_dict()
    if any(sample.mask is not None for sample in samples):
        maxima_NK = data.sums.maxima_NMK[:, Modality.VISUAL]
        overlap = mask_iou(model, sae, layer, samples, concepts, maxima_NK, settings.batch_size, text, config.seed)
        table = table.merge(overlap, on="feature", how="left")
    artifact.write_table("features.parquet", table)
    artifact.write_table(
        "examples.parquet", example_table(model, sae, layer, samples, data, pages.tolist(), settings.batch_size, text)
    )
    logits = logit_effects(model, sae, layer, pages.tolist())
    if logits is not None:
        artifact.write_table("logits.parquet", logits)
    artifact.write_tensors("sums.safetensors", {"maxima_NMK": data.sums.maxima_NMK, "means_NMK": data.sums.means_NMK})
    live = table[table["class"] != DEAD]
    return {
        "samples": len(samples), "latents": len(table), "live": len(live), "shares": class_shares(table["class"]),
        "median_concept_auroc": _number(live["concept_auroc"].median()),
    }


def _number(value: float) -> float | None:
    return None if value != value else float(value)
