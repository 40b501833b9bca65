"""`cmma tables`: every table of the paper beside what was measured, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import replace

from cmma.artifacts.files import write_text
from cmma.config import Config
from cmma.console import say
from cmma.errors import ConfigError
from cmma.stages.paper_tables import TABLES
from cmma.stages.runner import outputs_folder
from cmma.stages.tables_plan import Wanted, bring, read_plan


def run_tables(config: Config, words: Sequence[str] = ()) -> None:
    """Bring the runs of the tables into being (`tables.make`), and write each table in four forms to outputs/tables.

    Raises:
        ConfigError: a table or a scale that is not there.
    """
    names = list(config.tables.name or TABLES)
    for name in names:
        if name not in TABLES:
            near = difflib.get_close_matches(name, TABLES, n=1) or [", ".join(TABLES)]
            raise ConfigError(f"there is no table {name}; did you mean {near[0]}?")
    typed = [word for word in words if not word.lstrip("+").startswith("tables.")]
    plan = read_plan(config.tables.scale, typed)
    runs = {name: plan.get(TABLES[name].run, []) for name in names}
    if config.tables.make:
        bring([each for name in names for each in runs[name]])
    folder = outputs_folder(config) / "tables"
    for name in names:
        command = shlex.join(["cmma", "tables", f"name={name}", f"scale={config.tables.scale}", *typed])
        for table in TABLES[name].build(runs[name], command):
            table = replace(table, note=" ".join(filter(None, (table.note, _devices(runs[name])))))
            for suffix, text in (("md", table.to_markdown()), ("tex", table.to_latex()), ("csv", table.to_csv()),
                                 ("json", table.to_json())):
                write_text(folder / f"{table.name}.{suffix}", text)
            say(table.to_markdown())
    say(f"tables: {folder}")


def _devices(runs: Sequence[Wanted]) -> str:
    """What the numbers were computed on, and how to look one up."""
    devices = sorted({each.artifact.manifest["device"] for each in runs if each.artifact.finished})
    return f"Computed on: {', '.join(devices)}. `cmma show KEY` shows what is behind a number." if devices else ""
