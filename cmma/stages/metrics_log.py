"""Training metrics: `metrics.jsonl` is the truth, Weights & Biases an optional mirror."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from cmma.artifacts.files import write_text
from cmma.artifacts.keys import expand
from cmma.config import Config


class MetricsLog:
    """Append one JSON object per logged step; rank 0 writes, the others are silent.

    A resumed run goes back to its last checkpoint and logs steps again: lines from the first such step on are dropped,
    so that the file has each step once and equals that of an undisturbed run.
    """

    def __init__(self, path: Path, config: Config, rank: int = 0) -> None:
        self._path, self._config, self._active = path, config, rank == 0
        self._wandb: Any = None

    def __enter__(self) -> MetricsLog:
        if self._active and self._config.logger.wandb:
            import wandb

            self._wandb = wandb.init(
                project=self._config.logger.project, mode=cast(Any, self._config.logger.mode),
                dir=expand(self._config.paths.outputs), config=dataclasses.asdict(self._config),
                id=self._path.parent.name, resume="allow",
                reinit="create_new",  # dictionaries that train together have a run each
            )
        self._last = None
        return self

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Log one step; `metrics["step"]` counts optimiser steps."""
        if not self._active:
            return
        if self._last is None:
            self._drop_from(metrics["step"])
        self._last = metrics["step"]
        with open(self._path, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(metrics) + "\n")
        if self._wandb is not None:
            self._wandb.log(metrics, step=metrics["step"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))

    def _drop_from(self, step: int) -> None:
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                earlier = json.loads(line)["step"] < step
            except ValueError:  # the line that a killed run was writing
                break
            if earlier:
                kept.append(line)
        write_text(self._path, "".join(kept))
