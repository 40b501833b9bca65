#!/usr/bin/env python
"""Write how dictionaries fare over the planted cosine into docs/testbed_tasks.md.

    cmma benchmark -m task=planted 'benchmark.method=[msae,topk,sparc]' benchmark.planted.cosine=0,0.25,0.5,0.75,1
    python scripts/planted_cosine.py --outputs outputs

Of the tables in OUTPUTS/benchmark/planted those with the most methods are taken, one for each cosine. Only what stands
between the two marks of the document is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "testbed_tasks.md"
SECTION = re.compile(r"(<!-- planted cosine -->\n).*?(<!-- end -->)", re.DOTALL)
METRICS = {
    "cr": "`cr`, shared concepts kept in one latent",
    "gre": "`gre`, what is left of an atom (less is better)",
    "class_accuracy_free": "`class_accuracy_free`, specialisation of the recovered atoms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="outputs folder of the benchmarks")
    tables = collect(parser.parse_args().outputs)
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(SECTION.sub(lambda found: found[1] + render(tables) + found[2], text), encoding="utf-8")


def collect(outputs: Path) -> list[dict[str, Any]]:
    """The tables to show, by cosine."""
    found = [json.loads(path.read_text()) for path in sorted(outputs.glob("benchmark/planted/*/table.json"))]
    if not found:
        raise SystemExit(f"{outputs} holds no table of cmma benchmark task=planted")
    most = max(len(table["rows"]) for table in found)
    by_cosine = {table["config"]["planted"]["cosine"]: table for table in found if len(table["rows"]) == most}
    return [by_cosine[cosine] for cosine in sorted(by_cosine)]


def render(tables: list[dict[str, Any]]) -> str:
    """One Markdown table per metric: a row per method, a column per cosine."""
    methods = [row for row in tables[0]["rows"] if row not in ("untrained", "frozen_decoder", "shuffled")]
    cosines = [f"ρ = {table['config']['planted']['cosine']:g}" for table in tables]
    lines = [f"{len(tables[0]['seeds'])} seeds; ± is half the 95% t interval; the best value of a column is bold.", ""]
    for metric, title in METRICS.items():
        better = min if tables[0]["metrics"][metric]["better"] == "down" else max
        best = [better(table["rows"][row][metric]["value"] for row in methods) for table in tables]
        lines += [f"| {title} | {' | '.join(cosines)} |", "| --- |" + " ---: |" * len(tables)]
        for row in methods:
            cells = [_cell(table["rows"][row][metric], top) for table, top in zip(tables, best, strict=True)]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _cell(interval: dict[str, Any], best: float) -> str:
    number = f"{interval['value']:.3f}"
    if interval["value"] == best:
        number = f"**{number}**"
    half = (interval["high"] - interval["low"]) / 2 if interval["low"] is not None else None
    return number if half is None else f"{number} ± {half:.3f}"


if __name__ == "__main__":
    main()
