"""Put a finished report where people look for it. Imports nothing heavy: a run that skips every stage ends here."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from cmma.artifacts.store import Artifact


def publish(report: Artifact, outputs: Path) -> None:
    """Copy the site to `outputs/report`, replacing an older one in two renames."""
    target = outputs / "report"
    fresh, old = (target.with_name(f".report-{uuid.uuid4().hex[:8]}{suffix}") for suffix in ("", "-old"))
    shutil.copytree(report.path("site"), fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
