"""Everything the report can show, as plain data. The report stage fills it from artifacts; every part is optional.

A part that is None (or empty) is printed as *not measured* with the command from `commands`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from PIL import Image

from cmma.figures import Figure
from cmma.report.tables import Cell, Table


@dataclass(frozen=True)
class ArtifactRef:
    """One artifact that the report was made from.

    Attributes:
        stage, key: as in the artifact store; keys are the link targets of every number.
        command: the command line that makes it.
        created: ISO time of the commit.
        folder: where it lies, relative to the output folder.
        parents: keys of the artifacts it was made from.
        resolved: its resolved configuration, YAML text.
        summary: its headline numbers, JSON-like.
        device: what it was computed on.
    """

    stage: str
    key: str
    command: str = ""
    created: str = ""
    folder: str = ""
    parents: tuple[str, ...] = ()
    resolved: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True, eq=False)
class Shown:
    """A figure of a stage, as data. `images`: the files that a gallery names."""

    figure: Figure
    artifact: str = ""
    images: Mapping[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Input of `cmma.report.site.write_report`.

    Attributes:
        title: heading of the report. model, dataset: facts to print, in order ({"name": "toy_llava", "layers": 12}).
        artifacts: provenance. commands: stage name → command line that would measure what is missing.
        environment: package → version.
        sae: one row per dictionary: `artifact, model, layer, arch, n_latents, expansion, fvu, fvu_visual, fvu_textual,
            l0_visual, l0_textual, gini, dead_fraction, n_records, cosine`; absent columns print as not measured.
        specialisation: Table 1, one row per model or layer: `model` (label), `layer`, `visual, textual, cross_modal,
            mixed` in percent of the live features, `visual_error …` (optional), `kind` (what the ± is), `n` (seeds),
            `dead` in percent of all, `artifact`.
        features: one row per latent, `cmma.features.table.feature_table` plus `layer` (see there for the columns).
        examples: long form of `cmma.features.maps.example_table`, plus `layer`.
        images: sample key → RGB image, for every sample in `examples`. captions: sample key → caption.
        logits: `layer, feature, sign ("+" or "-"), rank, token, value` (direct effects on the logits).
        effects: causal effect of ablating single features: `layer, feature, readout, effect, low, high, kind, n`.
        edges: CMIG: `layer, source, target, strength, excess, p, q, artifact`; classes are looked up in `features`.
        network: CMIG numbers by the names of `references.NETWORK`. phases: by the names of `references.PHASES`.
        depth: the figures of the phases.
        causal: the figures of all traces and interventions.
        interventions: one row per measured condition: `intervention, condition ("features", "random features",
            "random direction"), readout, effect, low, high, kind, n, d, p, artifact`.
        hallucination: relative change in percent by the names of `references.HALLUCINATION`.
        consistency: by the names of `references.CONSISTENCY`. control: Table 2, dimension → column → cell.
        baselines: method → column → cell. baseline_controls: those of them that are controls or ceilings.
        evaluation: condition (split, with or without intervention) → metric → cell.
        pairs: condition (the dictionary, its floors and controls) → metric of image–text pairs → cell.
        spliced: condition (clean, the dictionary, controls and ablations) → metric and whose tokens → cell.
        modality_histogram: live latents by modality score, in bins of equal width from 0 (texts) to 1 (images).
    """

    title: str = "Cross-modal mechanistic analysis"
    model: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[ArtifactRef] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    sae: pd.DataFrame | None = None
    specialisation: pd.DataFrame | None = None
    features: pd.DataFrame | None = None
    examples: pd.DataFrame | None = None
    images: Mapping[str, Image.Image] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    logits: pd.DataFrame | None = None
    effects: pd.DataFrame | None = None
    edges: pd.DataFrame | None = None
    network: Mapping[str, Cell] = field(default_factory=dict)
    phases: Mapping[str, Cell] = field(default_factory=dict)
    causal: Sequence[Shown] = ()
    depth: Sequence[Shown] = ()
    interventions: pd.DataFrame | None = None
    hallucination: Mapping[str, Cell] = field(default_factory=dict)
    consistency: Mapping[str, Cell] = field(default_factory=dict)
    control: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    baseline_controls: Sequence[str] = ()
    evaluation: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    spliced: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    modality_histogram: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Chapter:
    """One table of the paper on the site of all tables.

    Attributes:
        name: of `cmma tables name=NAME`, and of its page.
        command: makes what is missing.
        tables: its parts. figures: what its artifacts left to be drawn.
        headline: what the paper's number is, ours and the paper's.
    """

    name: str
    command: str
    tables: Sequence[Table]
    figures: Sequence[Shown]
    headline: tuple[str, Cell, Cell]


@dataclass(frozen=True)
class ModelReport:
    """The report of one model, and the threshold of its classes."""

    inputs: ReportInputs
    tau: float


@dataclass(frozen=True, eq=False)
class TablesInputs:
    """Input of `cmma.report.tables_site.write_tables`.

    Attributes:
        title: heading of the site.
        chapters: in the order of the paper.
        artifacts: all that stand behind a cell, and what those were made from. environment: package → version.
        models: model → its own report.
    """

    title: str
    chapters: Sequence[Chapter]
    artifacts: Sequence[ArtifactRef] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, ModelReport] = field(default_factory=dict)
