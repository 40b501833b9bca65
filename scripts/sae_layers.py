#!/usr/bin/env python
"""Write how good dictionaries are, layer by layer, into docs/dictionaries.md.

    python scripts/sae_layers.py --outputs outputs     # collect finished train-sae and evaluate-sae artifacts
    python scripts/sae_layers.py                       # render what was collected before

The numbers are kept in docs/sae_layers.json. Only what stands between `<!-- layers of MODEL -->` and `<!-- end -->` is
replaced, and only models that have such a section are collected.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmma.artifacts.store import Artifact, list_artifacts
from cmma.sae.config import COUNTED

DOCS = Path(__file__).resolve().parent.parent / "docs"
DOCUMENT, NUMBERS = DOCS / "dictionaries.md", DOCS / "sae_layers.json"
SECTION = re.compile(r"(<!-- layers of (?P<model>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
QUALITY = (
    "fvu", "fvu_visual", "fvu_textual", "l0_visual", "l0_textual", "gini_visual", "gini_textual", "dead_fraction",
    "n_records",
)  # fmt: skip
HEADS = (
    "layer", "FVU", "visual", "textual", "L0 visual", "textual", "Gini visual", "textual", "dead", "of records",
)  # fmt: skip
BOUNDS = {"fvu": 0.10, "l0_visual": 32, "l0_textual": 32, "dead_fraction": 0.05}
"""What every layer should keep to."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--outputs", type=Path, help="folder of finished artifacts; omitted: render again")
    options = parser.parse_args()
    text = DOCUMENT.read_text(encoding="utf-8")
    if options.outputs:
        models = {found["model"] for found in SECTION.finditer(text)}
        rows = [row for row in collect(options.outputs) if row["model"] in models]
        NUMBERS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    DOCUMENT.write_text(rewritten(text, json.loads(NUMBERS.read_text(encoding="utf-8"))), encoding="utf-8")


def collect(outputs: Path) -> list[Row]:
    """One row per dictionary trained here, by settings and layer, with the loss recovered if `evaluate-sae` ran."""
    evaluated = {made.manifest["parents"]["train-sae"]: made for made in _finished(outputs, "evaluate-sae")}
    rows = []
    for trained in _finished(outputs, "train-sae"):
        manifest = trained.manifest
        if "optim" not in manifest["config"]:  # an imported one
            continue
        cached = Artifact(outputs, "cache-activations", manifest["parents"]["cache-activations"])
        rows.append({
            "model": cached.manifest["config"]["model"]["name"], "settings": settings(manifest["config"]),
            "layer": manifest["summary"]["layer"], **{name: manifest["summary"][name] for name in QUALITY},
            "recovered": recovered(evaluated[trained.key]) if trained.key in evaluated else {},
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["model"], row["settings"], row["layer"]))


def _finished(outputs: Path, stage: str) -> Iterator[Artifact]:
    return (artifact for artifact in list_artifacts(outputs, stage) if artifact.finished)


def settings(config: dict[str, Any]) -> str:
    """What was trained, in the words of the command line."""
    sae, optim = config["sae"], config["optim"]
    words = [f"sae={sae['arch']}", f"sae.n_latents={sae['n_latents']}"]
    if sae["adaptive_sparsity"]:
        words += [f"sae.{name}={sae[name]:g}" for name in ("target_l0_visual", "target_l0_textual")]
        words.insert(2, "sae.adaptive_sparsity=true")
    elif sae["arch"] in COUNTED:
        words.append(f"sae.k={sae['k']}")
    if sae["arch"] not in COUNTED:
        words.append(f"sae.lambda1={sae['lambda1']:g}")
    length = f"optim.steps={optim['steps']}" if optim["steps"] else f"optim.epochs={optim['epochs']:g}"
    return " ".join([*words, length, f"optim.lr={optim['lr']:g}", f"seed={config['seed']}"])


def recovered(evaluated: Artifact) -> dict[str, dict[str, float | None]]:
    """Loss recovered from mean ablation with all records replaced: metric → value, low, high, untrained."""
    table = evaluated.read_table("spliced.parquet")
    if table.empty:
        return {}
    table = table[(table["tokens"] == "all") & table["metric"].str.endswith("_recovered")]
    found: dict[str, dict[str, float | None]] = {}
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        cell = found.setdefault(row["metric"], {})
        if row["condition"] == "untrained":
            cell["untrained"] = row["value"]
        else:
            cell |= {name: row[name] for name in ("value", "low", "high")}
    return found


def rewritten(text: str, rows: list[Row]) -> str:
    """The document with every section of layers made anew."""
    def section(found: re.Match[str]) -> str:
        return found[1] + tables([row for row in rows if row["model"] == found["model"]]) + found[3]

    return SECTION.sub(section, text)


def tables(rows: list[Row]) -> str:
    """One table per setting; each says in how many layers the bounds are kept."""
    if not rows:
        return "Not measured yet.\n"
    lines = []
    for words in dict.fromkeys(row["settings"] for row in rows):
        own = [row for row in rows if row["settings"] == words]
        kept = sum(all(row[name] <= bound for name, bound in BOUNDS.items()) for row in own)
        losses = list(dict.fromkeys(loss for row in own for loss in row["recovered"]))
        heads = [*HEADS, *(loss.replace("_", " ") for loss in losses)]
        lines += [f"`{words}`: FVU ≤ 0.10 at L0 ≤ 32 with ≤ 5% dead in {kept} of {len(own)} layers.", ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + " ---: |" * len(heads)]
        for row in own:
            cells = [*_quality(row), *(_recovered(row["recovered"].get(loss, {})) for loss in losses)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _quality(row: Row) -> list[str]:
    return [
        str(row["layer"]), *(f"{row[name]:.3f}" for name in ("fvu", "fvu_visual", "fvu_textual")),
        *(f"{row[name]:.1f}" for name in ("l0_visual", "l0_textual")),
        *(f"{row[name]:.3f}" for name in ("gini_visual", "gini_textual")),
        f"{100 * row['dead_fraction']:.1f}%", f"{row['n_records']:,.0f}",
    ]


def _recovered(cell: dict[str, float | None]) -> str:
    """Value with its interval and, in brackets, that of the untrained dictionary."""
    if cell.get("value") is None:
        return "undefined" if cell else "–"
    interval = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if cell["low"] is not None else ""
    untrained = f" ({cell['untrained']:.3f})" if cell["untrained"] is not None else ""
    return f"{cell['value']:.3f}{interval}{untrained}"


if __name__ == "__main__":
    main()
