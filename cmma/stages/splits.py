"""Which samples each stage may use: features are never selected and measured on the same ones."""

from __future__ import annotations

from cmma.artifacts.store import Artifact
from cmma.config import Config
from cmma.data.samples import Sample
from cmma.data.tars import count_samples, read_tars
from cmma.stages.prepare_data import splits_of, tars_of


def resolve_split(data: Artifact, wanted: str | None) -> str:
    """`balanced` is the evaluation split of the shapes world; other data calls it `held_out`."""
    if wanted in (None, "balanced"):
        return "balanced" if "balanced" in splits_of(data) else "held_out"
    return str(wanted)


def load_split(data: Artifact, wanted: str | None, start: int = 0, stop: int | None = None) -> list[Sample]:
    """Samples `start` to `stop` of a split. Raises DataError naming the splits when there is no such split."""
    return list(read_tars(tars_of(data, resolve_split(data, wanted)), start, stop))


def interpreted_samples(data: Artifact, config: Config) -> list[Sample]:
    """The samples on which latents are described and classified: at most the first half of the split."""
    return load_split(data, config.interpret.split, 0, _n_interpreted(data, config))


def measured_samples(data: Artifact, config: Config) -> list[Sample]:
    """The rest of the same split, on which effects of features are measured."""
    return load_split(data, config.interpret.split, _n_interpreted(data, config))


def _n_interpreted(data: Artifact, config: Config) -> int:
    available = count_samples(tars_of(data, resolve_split(data, config.interpret.split)))
    return min(config.interpret.n_samples, available // 2)
