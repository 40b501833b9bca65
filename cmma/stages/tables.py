"""`cmma tables`: every table of the paper beside what was measured, as four kinds of files and as a site over all."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from cmma.config import Config
from cmma.console import say
from cmma.errors import ConfigError
from cmma.report.tables_site import write_tables
from cmma.stages.paper_tables import TABLES
from cmma.stages.runner import outputs_folder
from cmma.stages.tables_jobs import bring
from cmma.stages.tables_plan import read_plan
from cmma.stages.tables_site import gather_tables


def run_tables(config: Config, words: Sequence[str] = ()) -> None:
    """Bring the runs of the named tables into being (`tables.make`) and print them; write outputs/tables anew.

    What is written is every table, as far as it is measured: in four forms, and as pages.

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
    if config.tables.make:
        needed = dict.fromkeys(run for name in names for run in TABLES[name].runs)
        bring([each for run in needed for each in plan.get(run, [])], config.tables.jobs)
    found = gather_tables(plan, config.tables.scale, typed, names)
    for chapter in found.chapters:
        if chapter.name in names:
            for table in chapter.tables:
                say(table.to_markdown())
    say(f"tables: {write_tables(found, outputs_folder(config) / 'tables')}")
