"""The edges of method attribution: what modules of the stream say to each other, beside what patching finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cmma.causal.config import TraceConfig
from cmma.causal.curves import by_image
from cmma.causal.edges import edge_effects, edge_estimates, stream_edges
from cmma.causal.patching import Run
from cmma.causal.readout import Readout
from cmma.console import progress
from cmma.figures import HeatMap
from cmma.models.base import MultimodalModel
from cmma.statistics.agreement import rank_correlation, top_recall, with_bounds
from cmma.statistics.bootstrap import bootstrap_columns
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p


def edge_findings(
    model: MultimodalModel, clean: Sequence[Run], corrupt: Sequence[Run], stream: str, readout: Readout,
    config: TraceConfig,
) -> tuple[pd.DataFrame, dict[str, Any], HeatMap]:  # fmt: skip
    """Table of edges (source, target, n, effect with its interval, p, q; exact, n_exact), agreement, and a map."""
    options, edges = config.attribution, stream_edges(model, stream)
    estimates, measured = [], []
    with progress("Attributing to edges", total=len(clean)) as bar:
        for case, pair in enumerate(zip(clean, corrupt, strict=True)):
            estimates.append(edge_estimates(model, *pair, edges, readout, options.steps)[edges.before_ST])
            if case < options.exact:
                measured.append(edge_effects(model, *pair, edges, readout, config.rows_per_forward)[edges.before_ST])
            bar.advance(1)
    keys = [run.query.key for run in clean]
    effect_IE, _ = by_image(np.array(estimates), keys)
    source_E, target_E = np.nonzero(edges.before_ST)
    found = bootstrap_columns(effect_IE, seed=config.seed)
    p_E = sign_flip_p(effect_IE, 1000, config.seed)
    table = pd.DataFrame({
        "source": np.array(list(edges.sources))[source_E], "target": np.array(list(edges.targets))[target_E],
        "n": len(effect_IE), "effect": found.value, "effect_se": found.standard_error, "effect_low": found.low,
        "effect_high": found.high, "p": p_E, "q": benjamini_hochberg(p_E), "exact": np.nan, "n_exact": len(measured),
    })  # fmt: skip
    agreement: dict[str, Any] = {}
    if measured:
        own_IE, _ = by_image(np.array(estimates[: len(measured)]), keys[: len(measured)])
        exact_IE, _ = by_image(np.array(measured), keys[: len(measured)])
        table["exact"] = exact_IE.mean(axis=0)
        agreement = with_bounds({
            "rank_correlation": rank_correlation(own_IE.mean(axis=0), exact_IE.mean(axis=0), seed=config.seed),
            "recall": top_recall(own_IE, exact_IE, min(options.top, exact_IE.shape[1]), seed=config.seed),
        })  # fmt: skip

    def grid(column: str) -> np.ndarray:
        value_ST = np.full(edges.before_ST.shape, np.nan)
        value_ST[edges.before_ST] = table[column]
        return value_ST

    drawn = HeatMap(
        title="attribution: edges of the stream (estimate)", about=f"change of the {readout.name.replace('_', ' ')}",
        value_RC=grid("effect"), low_RC=grid("effect_low"), high_RC=grid("effect_high"), rows=list(edges.sources),
        columns=list(edges.targets), row_label="source", n=len(effect_IE),
    )  # fmt: skip
    return table, agreement, drawn
