"""knockout: through which attention, in which layers, the answer gets its information."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cmma.causal.config import TraceConfig
from cmma.causal.curves import by_image, centre, later_by, layer_table
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.intervening import queries_for
from cmma.causal.knockout import KnockoutResult, knock_out
from cmma.causal.readout import make_readout
from cmma.causal.rivals import prepare_readout
from cmma.causal.tracing import answered_right
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.figures import Curves, Figure, Line, Listing
from cmma.models.base import MultimodalModel
from cmma.statistics.correction import benjamini_hochberg, holm

ORDER = ("image->question", "question->last")
"""The two flows whose order is the headline: the question reads the image first, the last token the question."""


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Change of the readout for every flow × layer, and which flow works in earlier layers than which.

    Raises:
        ConfigError: a diffusion model, a flow, layer or readout that the model does not have.
    """
    if not model.attentions:
        raise ConfigError(f"trace.method=knockout masks attention, and that of {model.spec.name} takes no mask")
    queries = queries_for(model, samples[: config.max_samples])
    if config.readout == "auto":
        readout = make_readout(model, "auto", "first_token_probability")
    else:
        readout, queries = prepare_readout(model, queries, config.readout)
    used = answered_right(model, queries, readout, config.correct_only)
    result = knock_out(
        model, used, readout, flows=config.knockout.flows, width=config.knockout.window, layers=config.layers,
        rows_per_forward=config.rows_per_forward,
    )  # fmt: skip
    curves, centres, order = summarise(result, config.seed)
    strongest = curves.loc[curves["value"].abs().idxmax()] if curves["value"].notna().any() else None
    headline = order[(order["first"] == ORDER[0]) & (order["second"] == ORDER[1])]
    summary: dict[str, Any] = {
        "method": config.method, "readout": readout.name, "unit": unit(result), "window": result.width,
        "n_total": len(queries), "n_used": len(set(result.keys)), "clean": float(result.clean_N.mean()),
        "strongest": None if strongest is None else f"{strongest['flow']} at {strongest['layer']}",
        "strongest_change": None if strongest is None else float(strongest["value"]),
    }  # fmt: skip
    if len(headline):
        row = headline.iloc[0]
        summary |= {f"order_{name}": float(row[name]) for name in ("later_by", "low", "high", "p")}
    return Findings(
        summary=summary,
        tables={"knockout": curves, "centres": centres, "order": order, "scores": scores(result)},
        figures=figures(result, curves, centres),
    )


def unit(result: KnockoutResult) -> str:
    """What a change is measured in."""
    name = result.readout.replace("_", " ")
    return f"% of the {name}" if result.relative else name


def summarise(result: KnockoutResult, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Three tables.

    Curves: flow, layer, n, value (mean change) with its interval, p and q (Benjamini-Hochberg over all cells). Centres:
    flow, n, peak (layer of the largest drop) and centre of mass of the drops with its interval. Order: for two flows
    into the same tower, how many layers later the second has its centre, with interval, p, and Holm's correction.
    """
    curves, centres, order = [], [], []
    drops = {}
    for flow, layers in result.layers.items():
        change_IL, images = by_image(result.change_NL(flow), result.keys)
        if not len(images):
            continue
        drops[flow] = pd.DataFrame(-change_IL, index=images)
        curves.append(layer_table(change_IL, layers, seed=seed).assign(flow=flow))
        middle = centre(-change_IL, layers, seed=seed)
        centres.append({
            "flow": flow, "n": len(images), "peak": layers[int(np.argmin(change_IL.mean(axis=0)))],
            "change": float(change_IL.mean(axis=0).min()), "centre": middle.value, "low": middle.low,
            "high": middle.high,
        })  # fmt: skip
    table = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=["flow", "layer", "value", "p"])
    table = table.assign(q=benjamini_hochberg(table["p"]))
    for first, second in combinations(_moving(table, drops), 2):
        if result.streams[first] == result.streams[second]:
            both = drops[first].index.intersection(drops[second].index)
            pair = [drops[flow].loc[both].to_numpy() for flow in (first, second)]
            interval, p = later_by(pair[0], pair[1], result.layers[first], seed=seed)
            order.append({
                "first": first, "second": second, "n": len(both), "later_by": interval.value, "low": interval.low,
                "high": interval.high, "p": p,
            })  # fmt: skip
    ordered = pd.DataFrame(order, columns=["first", "second", "n", "later_by", "low", "high", "p"])
    return table, pd.DataFrame(centres), ordered.assign(p_holm=holm(ordered["p"]))


def _moving(curves: pd.DataFrame, drops: dict[str, pd.DataFrame]) -> list[str]:
    """Flows that take something away somewhere: only those have a place among the layers."""
    lower = curves[(curves["value"] < 0) & (curves["q"] < 0.05)]
    return [flow for flow in drops if flow in set(lower["flow"])]


def scores(result: KnockoutResult) -> pd.DataFrame:
    """Every measured readout, long: key, flow, layer, score, clean."""
    tables = []
    for flow, score_NL in result.score_NL.items():
        n, columns = score_NL.shape
        tables.append(pd.DataFrame({
            "key": np.repeat(np.asarray(result.keys, dtype=object), columns), "flow": flow,
            "layer": np.tile(result.layers[flow], n), "score": score_NL.flatten(),
            "clean": np.repeat(result.clean_N, columns),
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True).dropna(subset="score", ignore_index=True)


def figures(result: KnockoutResult, curves: pd.DataFrame, centres: pd.DataFrame) -> tuple[Figure, ...]:
    """One set of curves for each target, and the centres of all flows."""
    drawn: list[Figure] = []
    for target in dict.fromkeys(flow.split("->")[1] for flow in curves["flow"]):
        here = curves[curves["flow"].str.endswith(f"->{target}")]
        lines = [
            Line(f"from {flow.split('->')[0]}", rows["value"].to_numpy(), rows["value_low"].to_numpy(),
                 rows["value_high"].to_numpy())
            for flow, rows in here.groupby("flow", sort=False)
        ]  # fmt: skip
        drawn.append(Curves(
            title=f"attention of {target} blocked", x_label=f"layer (centre of {result.width})",
            about=f"change of the readout, {unit(result)}", x=sorted(set(here["layer"].tolist())), lines=lines,
            n=int(here["n"].max()),
        ))  # fmt: skip
    rows = centres.sort_values("centre")[["flow", "n", "peak", "change", "centre", "low", "high"]]
    drawn.append(Listing(
        title="where flows work", about="peak: layer of the largest drop; centre of mass of the drops with 95% CI",
        columns=list(rows.columns), rows=rows.astype(object).where(rows.notna(), None).to_numpy().tolist(),
    ))  # fmt: skip
    return tuple(drawn)
