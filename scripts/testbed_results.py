#!/usr/bin/env python
"""Write the recipes and metrics that lie beside the small models' weights into docs/testbed.md.

    python scripts/testbed_results.py

Only what stands between `<!-- results of NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "testbed.md"
WEIGHTS = ROOT / "cmma" / "testbed" / "weights"
SECTION = re.compile(r"(<!-- results of (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def rewritten(text: str) -> str:
    """The document with every section of results made anew."""
    return SECTION.sub(lambda found: found[1] + results(WEIGHTS / found["name"]) + found[3], text)


def results(folder: Path) -> str:
    """Recipe and metrics of one model as Markdown."""
    recipe, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("recipe", "metrics"))
    stages = "; ".join(
        f"*{name}*, {stage['steps']} steps of {stage['batch']} at rate {stage['lr']}, {recipe['minutes'][name]} minutes"
        for name, stage in recipe["stages"].items()
    )
    megabytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    lines = [
        f"{recipe['parameters']:,} parameters, {megabytes:.1f} MB. Seed {recipe['seed']}, {recipe['device']}, "
        f"torch {recipe['torch']}: {stages}. `{recipe['command']}`",
        "",
    ]
    groups = {name: group for name, group in metrics.items() if isinstance(group, dict)}
    for name, estimates in groups.items():
        lines += [f"| {name.replace('_', ' ')} | value | n |", "|---|---|---|"]
        lines += [f"| {label.replace('_', ' ')} | {_percent(e)} | {e['n']:,} |" for label, e in estimates.items()]
        lines.append("")
    return "\n".join(lines) + "\n"


def _percent(estimate: dict[str, Any]) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
