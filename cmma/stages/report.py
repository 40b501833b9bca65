"""report: one static folder with the tables, figures, feature pages and provenance of everything that exists."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from cmma.artifacts.store import Artifact
from cmma.console import say
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


def publish(artifact: Artifact, outputs: Path) -> None:
    """Copy the site to `outputs/report`, replacing an older report in two renames."""
    target = outputs / "report"
    fresh, old = (target.with_name(f".report-{uuid.uuid4().hex[:8]}{suffix}") for suffix in ("", "-old"))
    shutil.copytree(artifact.path("site"), fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    say(f"report: {target / 'index.html'}")
