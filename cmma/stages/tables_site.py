"""What the site over all tables shows, gathered from the runs of a plan: tables, figures, models and provenance."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from omegaconf import OmegaConf

from cmma.artifacts.files import read_json
from cmma.artifacts.store import Artifact
from cmma.console import warn
from cmma.errors import ConfigError, DataError, MissingParent
from cmma.report.inputs import ArtifactRef, Chapter, ModelReport, Shown, TablesInputs
from cmma.report.tables import Cell, Source, Table
from cmma.stages.benchmark import results_folder
from cmma.stages.keys import Keys
from cmma.stages.paper_tables import TABLES, PaperTable
from cmma.stages.report_inputs import figures_of, gather, reference
from cmma.stages.runner import command_of, open_parents, outputs_folder
from cmma.stages.tables_plan import BENCHMARK, Wanted

Plan = Mapping[str, Sequence[Wanted]]


def gather_tables(plan: Plan, scale: str, words: Sequence[str], named: Sequence[str]) -> TablesInputs:
    """Every table of the paper as far as its runs are there.

    Args:
        plan: all runs of the scale (`read_plan`). words: what the user typed for all of them.
        named: the tables that the user asked for. What the others need, data or models, may be missing altogether.

    Raises:
        DataError, ConfigError: the data or a model of a named table is not there.
    """
    needed = {run for name in named for run in TABLES[name].runs}
    runs = {name: own if name in needed else _reachable(own) for name, own in plan.items()}
    finished = {each.artifact.key: each for own in runs.values() for each in own
                if each.stage != BENCHMARK and each.artifact.finished}
    results = [each for own in runs.values() for each in own if each.stage == BENCHMARK and each.finished]
    sources = {key: _source(each) for key, each in finished.items()}
    sources |= {source.key: source for source in map(_benchmark_source, results)}
    references = _provenance(finished.values())
    references |= {reference.key: reference for reference in map(_benchmark_reference, results)}
    chapters = []
    for name, table in TABLES.items():
        own = [each for run in table.runs for each in runs.get(run, [])]
        command = shlex.join(["cmma", "tables", f"name={name}", f"scale={scale}", *words])
        made = [replace(part, sources=_behind(part, sources)) for part in table.build(own, command)]
        shown = [figure for each in _one_per_model(own, finished) for figure in _figures(each)]
        chapters.append(Chapter(name, command, made, shown, _headline(table, made)))
    software = {
        name: number for each in finished.values() for name, number in each.artifact.manifest["software"].items()}
    return TablesInputs(f"The paper's tables, scale {scale}", chapters, list(references.values()), software,
                        _models(finished, references))


def _reachable(runs: Iterable[Wanted]) -> list[Wanted]:
    """Those whose data and model are there."""
    found = []
    for each in runs:
        try:
            if each.stage == BENCHMARK or each.artifact:
                found.append(each)
        except (DataError, ConfigError):  # not asked for: its table says not measured
            continue
    return found


def _behind(table: Table, sources: Mapping[str, Source]) -> tuple[Source, ...]:
    keys = dict.fromkeys(key for cell in table.cells for key in cell.artifact.split())
    return tuple(sources[key] for key in keys)


def _headline(table: PaperTable, made: Sequence[Table]) -> tuple[str, Cell, Cell]:
    label, column, paper = table.headline
    ours = [row for row in made[0].rows if row.source != "paper"] if made else []
    rows = [row for row in ours if row.label == label] if label else ours
    heads = made[0].columns[1:] if made else ()
    if not rows or heads[column] == "paper":  # no model of ours has a column
        return label or "all", Cell(), paper
    return f"{rows[0].label}: {heads[column]}", rows[0].cells[column], paper


def _one_per_model(runs: Sequence[Wanted], finished: Mapping[str, Wanted]) -> list[Wanted]:
    """The first finished run of every stage and model: seeds differ little in what they draw."""
    found: dict[tuple[str, str], Wanted] = {}
    for each in runs:
        if each.stage != BENCHMARK and each.artifact.key in finished and each.artifact.path("figures.json").is_file():
            found.setdefault((each.stage, each.config.model.name), each)
    return list(found.values())


def _figures(run: Wanted) -> list[Shown]:
    """What a run left to be drawn, under the name of its model; those of the phases name their models themselves."""
    if run.stage == "phases":
        return figures_of(run.artifact)
    return [replace(each, figure=replace(each.figure, title=f"{run.config.model.name}: {each.figure.title}"))
            for each in figures_of(run.artifact)]


# Provenance ------------------------------------------------------------------------------------------------------


def _source(run: Wanted) -> Source:
    seeds = run.config.phases.seeds if run.stage == "phases" else [run.config.seed]
    return Source(run.artifact.key, run.stage, ", ".join(map(str, seeds)), run.artifact.manifest["device"])


def _benchmark_source(run: Wanted) -> Source:
    """A benchmark leaves a folder of results, not an artifact; it runs on the CPU wherever it is."""
    folder = results_folder(run.config)
    return Source(folder.name, BENCHMARK, ", ".join(map(str, read_json(folder / "table.json")["seeds"])), "cpu")


def _benchmark_reference(run: Wanted) -> ArtifactRef:
    folder = results_folder(run.config)
    found = read_json(folder / "table.json")
    return ArtifactRef(
        BENCHMARK, folder.name, shlex.join(["cmma", BENCHMARK, *run.words]),
        folder=str(folder.relative_to(outputs_folder(run.config))), device="cpu",
        resolved=OmegaConf.to_yaml({"benchmark": found["config"], "seeds": found["seeds"], "model": found["model"]}),
        summary={name: found[name] for name in ("title", "chance", "seconds")},
    )


def _provenance(runs: Iterable[Wanted]) -> dict[str, ArtifactRef]:
    """Key → the artifacts of the runs and all that they were made from, parents first."""
    found: dict[str, ArtifactRef] = {}
    for run in runs:
        _add(run.artifact, _commands(run), run, found)
    return found


def _add(artifact: Artifact, commands: Mapping[str, str], run: Wanted, found: dict[str, ArtifactRef]) -> None:
    if artifact.key in found or not artifact.finished:
        return
    for label, key in artifact.manifest["parents"].items():
        _add(Artifact(outputs_folder(run.config), label.split(":")[0], key), commands, run, found)
    found[artifact.key] = reference(artifact.stage, artifact, commands.get(artifact.key, ""))


def _commands(run: Wanted) -> dict[str, str]:
    """Key → what makes it, of a run and of all that it builds on."""
    keys = Keys(run.config)
    stages = (*keys.ancestors(run.stage), run.stage)
    others = {label: other for stage in stages for label, other in keys.others(stage).items()}
    found = {other.keys.key(other.stage): command_of(label, others, run.words) for label, other in others.items()}
    return found | {keys.key(stage): command_of(stage, others, run.words) for stage in stages}


# Models ----------------------------------------------------------------------------------------------------------


def _models(finished: Mapping[str, Wanted], references: Mapping[str, ArtifactRef]) -> dict[str, ModelReport]:
    """The report of every model that has an interpreted dictionary: of its first seed."""
    found: dict[str, ModelReport] = {}
    for run in finished.values():
        config, name = run.config, run.config.model.name
        if run.stage != "interpret" or name in found:
            continue
        try:
            _, parents = open_parents("report", config, outputs_folder(config), run.words)
        except MissingParent as error:  # its numbers stand without the images that they were measured on
            warn(f"no pages for {name}: {error}")
            continue
        for key, other in finished.items():  # with settings of their own, so no report of this configuration finds them
            made_from = other.artifact.manifest["parents"].values()
            if run.artifact.key in made_from:
                parents[_label(other)] = Artifact(outputs_folder(config), other.stage, key)
        inputs = gather(config, parents, run.words)
        known = [replace(each, command=references[each.key].command) if each.key in references else each
                 for each in inputs.artifacts]
        found[name] = ModelReport(replace(inputs, artifacts=known), config.sae.tau)
    return found


def _label(run: Wanted) -> str:
    return f"intervene:{run.config.intervention.kind}" if run.stage == "intervene" else run.stage
