"""report: one static folder with the tables, figures, feature pages and provenance of everything that exists."""

from __future__ import annotations

from typing import Any

from cmma.report.site import write_report
from cmma.stages.report_inputs import gather
from cmma.stages.runner import Stage


def run(stage: Stage) -> dict[str, Any]:
    """Write the site into the artifact and publish it as `outputs/report`; summary: what it was made from."""
    inputs = gather(stage.config, stage.parents, stage.overrides)
    write_report(inputs, stage.artifact.path("site"), stage.config.sae.tau)
    return {
        "parts": sorted(stage.parents), "pages": len(list(stage.artifact.path("site").rglob("*.html"))),
    }
