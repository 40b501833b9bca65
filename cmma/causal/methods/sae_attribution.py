"""sae_attribution: what every feature of a dictionary contributes, estimated at once and checked by ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.causal.attribution import Attribution, attribute, query_effects
from cmma.causal.config import TraceConfig
from cmma.causal.curves import by_image
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.intervening import divide, queries_for
from cmma.causal.method_configs import SAEAttributionConfig
from cmma.causal.queries import Query, assert_disjoint
from cmma.causal.readout import Readout
from cmma.causal.rivals import prepare_readout
from cmma.causal.selection import ablation_effects
from cmma.causal.tracing import answered_right
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.figures import Curves, Figure, HeatMap, Line, Listing
from cmma.models.base import MultimodalModel
from cmma.statistics.agreement import rank_correlation, screen_recall, with_bounds
from cmma.statistics.bootstrap import bootstrap_columns
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p

SHOWN = 16
"""Features in the figures."""


@dataclass(frozen=True)
class Check:
    """Estimates and measurements of some features on the measuring queries.

    Attributes:
        features: length F.
        chosen: how each came in: by the `screen` of other queries, as a `check` of the estimate on these queries, or
            at `random` from the other live features.
        n_live: live features in all.
        own, drawn: indices into `features`: those of largest estimate on these queries, and the random sample of the
            others. Together they show how good the estimate is; what it chose is not measured on the same images.
        queries: behind the rows.
        estimate_NF, effect_NF: estimated and measured change of the readout when the feature is ablated.
    """

    features: tuple[int, ...]
    chosen: tuple[str, ...]
    n_live: int
    own: list[int]
    drawn: list[int]
    queries: tuple[Query, ...]
    estimate_NF: np.ndarray
    effect_NF: np.ndarray

    def by_image(self, values_NF: np.ndarray) -> np.ndarray:
        """Mean over the queries of each image, [I, F]."""
        return by_image(values_NF, [query.key for query in self.queries])[0]


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Half of the samples choose features, the other half measures them, and how good the estimate is.

    Raises:
        ConfigError: no dictionary.
        DataError: too few samples, or none with a question.
    """
    if dictionary is None:
        raise ConfigError("trace.method=sae_attribution needs a dictionary; run train-sae first")
    options, n = config.sae_attribution, min(len(samples), config.max_samples)
    halves = [queries_for(model, half) for half in divide(samples, n // 2, n - n // 2)]
    readout, prepared = prepare_readout(model, [*halves[0], *halves[1]], config.readout, options.batch_size)
    choosing, measuring = (
        answered_right(model, half, readout, config.correct_only)
        for half in (prepared[: len(halves[0])], prepared[len(halves[0]) :])
    )
    assert_disjoint(choosing, measuring)
    screen = attribute(
        model, dictionary.sae, dictionary.layer, choosing, readout,
        tokens=options.tokens, steps=options.steps, batch_size=options.batch_size,
    )  # fmt: skip
    check = check_screen(model, dictionary, screen, measuring, readout, options, config.seed)

    estimate_IF, effect_IF = check.by_image(check.estimate_NF), check.by_image(check.effect_NF)
    table = feature_table(check, screen, estimate_IF, effect_IF, config.seed)
    chosen = table.loc[table["chosen"] == "screen", "feature"].head(SHOWN).tolist()
    kinds = kind_table(check, chosen, config.seed)
    estimate_F, effect_F = estimate_IF.mean(axis=0), effect_IF.mean(axis=0)
    agreements = {
        name: rank_correlation(estimate_F[rows], effect_F[rows], seed=config.seed)
        for name, rows in (("rank_correlation", check.own + check.drawn), ("rank_correlation_random", check.drawn))
    }
    top = min(options.top, len(check.own))
    size_F = np.abs(effect_F)
    recall = screen_recall(size_F[check.own], size_F[check.drawn], check.n_live - len(check.own), top)
    return Findings(
        summary={
            "method": config.method, "readout": readout.name, "layer": dictionary.layer, "steps": options.steps,
            "n_choosing": len(choosing), "n_used": len(measuring), "live": check.n_live,
            **with_bounds(agreements | {"recall": recall}), "recall_of_top": top,
            "strongest": f"feature {chosen[0]}",
            "strongest_effect": float(table.loc[table["feature"] == chosen[0], "effect"].iloc[0]),
        },
        tables={"features": table, "kinds": kinds},
        tensors={"attribution_K": screen.effect_K, "density_K": screen.density_K},
        figures=figures(table, kinds, readout.name.replace("_", " "), len(effect_IF)),
    )  # fmt: skip


def check_screen(
    model: MultimodalModel, dictionary: Dictionary, screen: Attribution, queries: Sequence[Query], readout: Readout,
    options: SAEAttributionConfig, seed: int = 0,
) -> Check:  # fmt: skip
    """Estimate all features on other queries, and really ablate three sets of them (see `Check`)."""
    sae, layer = dictionary.sae, dictionary.layer
    places: dict[str, Any] = {"tokens": options.tokens, "batch_size": options.batch_size}
    found = query_effects(model, sae, layer, queries, readout, steps=options.steps, **places)
    estimate_NK = torch.cat([each.effect_BK.cpu() for each in found])
    live = torch.nonzero(screen.density_K > 0).flatten()

    def largest(effect_K: Tensor) -> list[int]:
        return live[effect_K[live].abs().argsort(descending=True, stable=True)][: options.verify].tolist()

    screened, own = largest(screen.effect_K), largest(estimate_NK.double().mean(dim=0))
    rest = live[~torch.isin(live, torch.tensor(own))]
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: options.random]].tolist()
    features = list(dict.fromkeys(screened + own + drawn))
    chosen = ["screen" if each in screened else "check" if each in own else "random" for each in features]
    effect_NF = ablation_effects(model, sae, layer, queries, readout, features, **places)
    return Check(
        tuple(features), tuple(chosen), len(live), [features.index(each) for each in own],
        [features.index(each) for each in drawn], tuple(queries), estimate_NK[:, features].double().numpy(), effect_NF,
    )  # fmt: skip


def feature_table(
    check: Check, screen: Attribution, estimate_IF: np.ndarray, effect_IF: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """One row per measured feature, largest exact effect first.

    Columns: feature, chosen (see `Check`), density, attribution (on the choosing samples), estimate (on the measuring
    ones), effect (measured) with effect_se, effect_low, effect_high, p, q. A `check` was chosen on the images that it
    is measured on: its interval says nothing about other images.
    """
    interval = bootstrap_columns(effect_IF, seed=seed)
    p_F = sign_flip_p(effect_IF, 1000, seed)
    features = list(check.features)
    table = pd.DataFrame({
        "feature": features, "chosen": list(check.chosen),
        "density": screen.density_K[features].numpy(), "attribution": screen.effect_K[features].numpy(),
        "estimate": estimate_IF.mean(axis=0), "effect": interval.value, "effect_se": interval.standard_error,
        "effect_low": interval.low, "effect_high": interval.high, "p": p_F, "q": benjamini_hochberg(p_F),
    })  # fmt: skip
    return table.sort_values("effect", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def kind_table(check: Check, features: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """Measured effect of some features for each kind of question: feature, kind, n, effect, effect_low, effect_high."""
    columns = [check.features.index(feature) for feature in features]
    kind_N = np.asarray([query.kind for query in check.queries], dtype=object)
    key_N = np.asarray([query.key for query in check.queries], dtype=object)
    tables = []
    for kind in sorted(set(kind_N)):
        own_N = kind_N == kind
        effect_IF, _ = by_image(check.effect_NF[own_N][:, columns], key_N[own_N].tolist())
        found = bootstrap_columns(effect_IF, seed=seed)
        tables.append(pd.DataFrame({
            "feature": list(features), "kind": kind, "n": len(effect_IF), "effect": found.value,
            "effect_low": found.low, "effect_high": found.high,
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def figures(table: pd.DataFrame, kinds: pd.DataFrame, readout: str, n: int) -> tuple[Figure, ...]:
    """Estimates beside measurements, the strongest features by kind of question, and their numbers."""
    screened = table[table["chosen"] == "screen"].sort_values("attribution", key=np.abs, ascending=False)
    compared = Curves(
        title="estimated and measured effect of ablating one feature", about=f"change of the {readout}",
        x_label="rank in the screen", x=list(range(1, len(screened) + 1)), n=n,
        lines=[
            Line("estimate", screened["estimate"].to_numpy()),
            Line("measured", screened["effect"].to_numpy(), screened["effect_low"].to_numpy(),
                 screened["effect_high"].to_numpy()),
        ],
    )  # fmt: skip
    features = list(dict.fromkeys(kinds["feature"]))
    names = list(dict.fromkeys(kinds["kind"]))

    def grid(column: str) -> np.ndarray:
        return kinds.pivot(index="feature", columns="kind", values=column).loc[features, names].to_numpy(float)

    by_kind = HeatMap(
        title="effect of ablation by kind of question", about=f"change of the {readout}", value_RC=grid("effect"),
        low_RC=grid("effect_low"), high_RC=grid("effect_high"), rows=[str(feature) for feature in features],
        columns=names, row_label="feature", n=n,
    )  # fmt: skip
    columns = ["feature", "density", "attribution", "estimate", "effect", "effect_low", "effect_high", "q"]
    shown = table.loc[table["chosen"] == "screen", columns].head(SHOWN)
    listing = Listing(
        title="features of largest effect, chosen on other images",
        about=f"change of the {readout} when the feature is ablated, with 95% CI",
        columns=list(shown.columns), rows=shown.astype(object).where(shown.notna(), None).to_numpy().tolist(),
    )  # fmt: skip
    return compared, by_kind, listing
