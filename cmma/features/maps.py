"""Where in the image and on which words a feature fires, for the examples that are shown; and what it says."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from cmma.console import progress
from cmma.data.samples import Sample
from cmma.features.collect import FeatureData
from cmma.features.encode import encode_samples, token_texts
from cmma.modality import Modality
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


def example_table(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], data: FeatureData,
    features: Sequence[int], batch_size: int = 32, text: str = "caption", n_bands: int = 4, per_band: int = 3,
) -> pd.DataFrame:
    """Chosen examples of some features with their patch heat maps and token activations.

    Runs the model once more over the samples that are shown.

    Args:
        samples, data: as given to and returned by `collect`. features: latents to show.

    Returns:
        `layer, feature, band, rank, sample` (its key), `position, activation` (see `ExampleCollector.table`), `heat`
        (list, row by row; empty without a full patch grid), `grid_rows, grid_cols, tokens` (texts of the words),
        `token_activations` (list of the same length).
    """
    chosen = data.examples.table(list(features), n_bands, per_band)
    wanted = {int(index): part for index, part in chosen.groupby("sample")}
    order = sorted(wanted)
    maps: dict[int, dict[str, object]] = {}
    with progress("Drawing examples", total=len(order)) as bar:
        for found in encode_samples(model, sae, layer, [samples[index] for index in order], batch_size, text):
            for row, feature in wanted[order[found.index]]["feature"].items():
                acts_T = found.latents_TK[:, int(feature)]
                maps[row] = {
                    "heat": [] if found.patches_P is None else acts_T[found.patches_P].tolist(),
                    "grid_rows": found.grid[0], "grid_cols": found.grid[1], "tokens": found.tokens,
                    "token_activations": acts_T[found.words_W].tolist(),
                }
            bar.advance()
    columns = ["heat", "grid_rows", "grid_cols", "tokens", "token_activations"]
    table = chosen.join(pd.DataFrame.from_dict(maps, orient="index", columns=columns))
    table["sample"] = [data.keys[index] for index in table["sample"]]
    table.insert(0, "layer", layer)
    return table


@torch.no_grad()
def logit_effects(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, features: Sequence[int], top: int = 10
) -> pd.DataFrame | None:
    """Tokens that a feature's direction raises and lowers most when read out directly (W_U · d, without final norm).

    The direction, that of textual records, has norm one, so values compare within a feature, not across layers.

    Returns:
        `layer, feature, sign` ("+" or "-"), `rank, token, value`; None where records are not read out directly.
    """
    unembedding = model.unembedding()
    if unembedding is None:
        return None
    unembedding_VD = unembedding.float()
    textual_FD = sae.directions(Modality.TEXTUAL)[list(features)].to(unembedding_VD.device).float()
    directions_FD = torch.nn.functional.normalize(textual_FD, dim=1)
    rows: list[tuple[int, int, str, int, str, float]] = []
    for feature, direction_D in zip(features, directions_FD, strict=True):
        effect_V = unembedding_VD @ direction_D
        for sign, largest in (("+", True), ("-", False)):
            values, ids = effect_V.topk(min(top, len(effect_V)), largest=largest)
            texts = token_texts(model.tokenizer, ids.tolist())
            rows += [(layer, int(feature), sign, rank, token, value)
                     for rank, (token, value) in enumerate(zip(texts, values.tolist(), strict=True))]
    return pd.DataFrame(rows, columns=["layer", "feature", "sign", "rank", "token", "value"])
