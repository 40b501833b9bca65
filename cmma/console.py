"""What the user sees while work goes on: progress bars on stderr, result lines on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

Item = TypeVar("Item")
_stderr = Console(stderr=True)
_bars = True


class _Rate(ProgressColumn):
    """Items per second, averaged over the recent past."""

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="cyan")


class Bar:
    """Handle on one progress bar."""

    def __init__(self, rich_progress: Progress, task_id: TaskID) -> None:
        self._progress, self._task = rich_progress, task_id

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more items as done."""
        self._progress.advance(self._task, amount)

    def note(self, text: str) -> None:
        """Show a short remark behind the bar (a loss, a count)."""
        self._progress.update(self._task, note=text)


@contextmanager
def progress(label: str, total: float | None, done: int = 0) -> Iterator[Bar]:
    """A bar with rate and time left. Silent when stderr is not a terminal.

    Args:
        label: what is being done, in a few words.
        total: number of items; None if unknown.
        done: items finished before (a resumed run starts its bar there).
    """
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=_stderr, disable=not (_bars and _stderr.is_terminal)) as bars:
        yield Bar(bars, bars.add_task(label, total=total, completed=done, note=""))


def track(items: Iterable[Item], label: str, total: float | None = None) -> Iterator[Item]:
    """Iterate with a progress bar."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(label, total) as bar:
        for item in items:
            yield item
            bar.advance()


def hide_bars() -> None:
    """No bars from this process: those of several would overwrite each other."""
    global _bars
    _bars = False


def say(line: str) -> None:
    """One line for the user, on stdout, unwrapped and without markup."""
    print(line, flush=True)


def warn(line: str) -> None:
    """One line of warning, on stderr."""
    _stderr.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def format_value(value: object) -> str:
    """A number, text, list or dictionary from an artifact's summary as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return "not measured" if value is None else str(value)
