#!/usr/bin/env python
"""Write what mitigation changed, over dictionaries of several seeds, into docs/hallucination.md.

    python scripts/mitigation_table.py --outputs outputs     # collect finished mitigate artifacts
    python scripts/mitigation_table.py                       # render what was collected before

The numbers are kept in docs/mitigation.json. Only what stands between `<!-- NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmma.artifacts.store import Artifact, list_artifacts
from cmma.report.references import HALLUCINATION
from cmma.statistics.student import student_mean

DOCS = Path(__file__).resolve().parent.parent / "docs"
DOCUMENT, NUMBERS = DOCS / "hallucination.md", DOCS / "mitigation.json"
SECTION = re.compile(r"(<!-- (?P<name>by seed|by condition|answers|where) -->\n).*?(<!-- end -->)", re.DOTALL)
OURS = "features"
BIASED, PLAIN = "counter", "balanced"
RATES = {"object": "object", "attribute": "attribute", "relation": "relation", "all": "all",
         "phrase": "attribute, absent objects included", "statement": "relation, absent objects included"}
KEPT = ("condition", "split", "metric", "before", "value", "change", "change_low", "change_high", "d", "p_holm")

Seed = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--outputs", type=Path, help="folder of finished artifacts; omitted: render again")
    options = parser.parse_args()
    if options.outputs:
        NUMBERS.write_text(json.dumps(collect(options.outputs), indent=1) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(rewritten(text, json.loads(NUMBERS.read_text(encoding="utf-8"))), encoding="utf-8")


def collect(outputs: Path) -> list[Seed]:
    """One entry per finished artifact, by the seed of its dictionary."""
    seeds = []
    for made in list_artifacts(outputs, "mitigate"):
        if not made.finished or not made.path("test.parquet").is_file():
            continue
        trained = Artifact(outputs, "train-sae", made.manifest["parents"]["train-sae"])
        rows = made.read_table("test.parquet")[list(KEPT)].to_dict("records")
        trigger = made.read_table("trigger.parquet").to_dict("records")
        summary = made.summary
        seeds.append({
            "seed": trained.manifest["config"]["seed"], "layer": trained.summary["layer"],
            **{name: summary[name] for name in ("selection", "features", "strength", "chosen")},
            "rows": [_plain(row) for row in rows], "trigger": [_plain(row) for row in trigger],
        })  # fmt: skip
    return sorted(seeds, key=lambda found: found["seed"])


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """Five digits are enough to print; what is not finite has no JSON form."""
    def number(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return float(f"{value:.5g}") if math.isfinite(value) else None

    return {str(name): number(value) for name, value in row.items()}


def rewritten(text: str, seeds: Sequence[Seed]) -> str:
    """The document with its tables made anew."""
    made = {"by seed": by_seed, "by condition": by_condition, "answers": answers, "where": where}

    def table(found: re.Match[str]) -> str:
        return found[1] + "\n".join(made[found["name"]](seeds)) + "\n" + found[3]

    return SECTION.sub(table, text)


def by_seed(seeds: Sequence[Seed]) -> Iterator[str]:
    """The chosen features: change of each rate on the held-out images, with its interval and d, and what is lost."""
    yield from _head("dictionary", *RATES.values(), "recall", "accuracy")
    for found in seeds:
        cells = [_change(_row(found, OURS, BIASED, name)) for name in RATES]
        losses = [_points(_row(found, OURS, BIASED, name)) for name in ("recall", "accuracy")]
        yield _line(f"seed {found['seed']}: {_chosen(found)}", *cells, *losses)
    cells = [_mean([_row(found, OURS, BIASED, name) for found in seeds], "%") for name in RATES]
    losses = [_mean([_row(found, OURS, BIASED, name) for found in seeds], " points") for name in ("recall", "accuracy")]
    yield _line(f"**mean of {len(seeds)}**, t interval", *cells, *losses)
    named = {name: cell.text() for name, cell in HALLUCINATION.items()}
    yield _line("the paper", *(named.get(name, "–") for name in RATES.values()), "–", "–")


def _chosen(found: Seed) -> str:
    n = len(found["features"])
    return f"{n} {'feature' if n == 1 else 'features'} by {found['selection']}, s = {found['strength']:g}"


def by_condition(seeds: Sequence[Seed]) -> Iterator[str]:
    """Every condition, means over seeds: on the biased split, and what is left of recall on the other."""
    columns = (("object", BIASED, "%"), ("caption", BIASED, "%"), ("phrase", BIASED, "%"), ("statement", BIASED, "%"),
               ("recall", BIASED, " points"), ("described", BIASED, " points"), ("accuracy", BIASED, " points"),
               ("words", BIASED, ""), ("recall", PLAIN, " points"), ("doubtful", PLAIN, " points"),
               ("accuracy", PLAIN, " points"))  # fmt: skip
    yield from _head("condition", "seeds", *(f"{metric}, {split}" for metric, split, _ in columns))
    names = list(dict.fromkeys(row["condition"] for found in seeds for row in found["rows"]))
    for name in names:
        tested = [found for found in seeds if any(row["condition"] == name for row in found["rows"])]
        if name == "clean":
            cells = [_value(_row(tested[0], name, split, metric), unit) for metric, split, unit in columns]
        else:
            cells = [_mean([_row(found, name, split, metric) for found in tested], unit)
                     for metric, split, unit in columns]
        yield _line(name, str(len(tested)), *cells)


def answers(seeds: Sequence[Seed]) -> Iterator[str]:
    """Accuracy in presence questions: the value without steering, then the change."""
    ways = ("random", "popular", "adversarial")
    yield from _head("condition", "seeds", *ways)
    for name in dict.fromkeys(row["condition"] for found in seeds for row in found["rows"]):
        tested = [found for found in seeds if any(row["condition"] == name for row in found["rows"])]
        rows = [[_row(found, name, BIASED, f"presence_{way}") for found in tested] for way in ways]
        cells = [_value(each[0], " points") if name == "clean" else _mean(each, " points") for each in rows]
        yield _line(name, str(len(tested)), *cells)


def where(seeds: Sequence[Seed]) -> Iterator[str]:
    """Where each chosen feature lies."""
    yield from _head("dictionary", "feature", "AUROC", "random features", "p", "active on trigger", "elsewhere")
    for found in seeds:
        for row in found["trigger"]:
            interval = "" if row["auroc_low"] is None else f" [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
            yield _line(f"seed {found['seed']}", str(row["feature"]), f"{row['auroc']:.3f}{interval}",
                        f"{row['control']:.3f}", f"{row['p']:.2g}", f"{100 * row['active_on_trigger']:.1f}%",
                        f"{100 * row['active_elsewhere']:.1f}%")


def _row(found: Seed, condition: str, split: str, metric: str) -> dict[str, Any]:
    """The row of a condition; empty where it was not measured."""
    wanted = (condition, split, metric)
    return next((row for row in found["rows"] if (row["condition"], row["split"], row["metric"]) == wanted), {})


def _change(row: dict[str, Any]) -> str:
    """A relative change with its interval over images and Cohen's d."""
    if row.get("change") is None:
        return "undefined" if row else "–"
    d = "" if row["d"] is None else f", d {_minus(row['d'], '.2f')}"
    return _spread(row["change"], row["change_low"], row["change_high"], "%") + d


def _points(row: dict[str, Any]) -> str:
    """A difference of shares in points."""
    if row.get("change") is None:
        return "–"
    bounds = (None if row[name] is None else 100 * row[name] for name in ("change_low", "change_high"))
    return _spread(100 * row["change"], *bounds)


def _value(row: dict[str, Any], unit: str) -> str:
    if row.get("value") is None:
        return "–"
    return f"{row['value']:.1f}" if unit == "" else f"{100 * row['value']:.1f}%"


def _mean(rows: Sequence[dict[str, Any]], unit: str) -> str:
    """Mean change over seeds with Student's t interval; the interval over images where all seeds say the same."""
    scale = 100 if unit == " points" else 1
    changes = [scale * row["change"] for row in rows if row.get("change") is not None]
    if not changes:
        return "undefined" if rows and rows[0] else "–"
    mean, first = student_mean(changes), rows[0]
    low, high = mean.low, mean.high
    if max(changes) == min(changes) and first["change_low"] is not None:
        low, high = scale * first["change_low"], scale * first["change_high"]
    return _spread(mean.value, low, high, "%" if unit == "%" else "")


def _spread(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """"+1.2% [0.3, 2.1]", the interval only where there is one."""
    assert value is not None
    bounds = "" if low is None or high is None or not math.isfinite(low) else f" [{_minus(low)}, {_minus(high)}]"
    return _minus(value, "+.1f") + unit + bounds


def _minus(value: float, form: str = ".1f") -> str:
    return format(value, form).replace("-", "−")


def _head(*cells: str) -> Iterator[str]:
    yield _line(*cells)
    yield _line(*("---" for _ in cells))


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
