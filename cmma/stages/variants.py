"""Several configurations of one stage side by side: the traces and interventions of `cmma run` and of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from omegaconf import OmegaConf

from cmma.config import Config, load_group, schema, to_config

# Stage → (configuration group that holds its variants, the list in RunConfig).
_GROUPS = {"trace": ("trace", "traces"), "intervene": ("intervention", "interventions")}


def variants(stage: str, config: Config, overrides: Sequence[str] = ()) -> Iterator[tuple[str, Config]]:
    """Name and configuration of every variant of a stage; a stage without variants has one, of its own name.

    A variant is its file in the group with the user's own `group.key=value` overrides on top.

    Raises:
        ConfigError: `run.traces` or `run.interventions` names a file that is not there.
    """
    if stage not in _GROUPS:
        yield stage, config
        return
    group, listed = _GROUPS[stage]
    typed = [word.lstrip("+") for word in overrides if word.lstrip("+").startswith(f"{group}.")]
    for name in getattr(config.run, listed):
        base = OmegaConf.create({group: load_group(group, name)})
        own = OmegaConf.from_dotlist(typed)
        merged = OmegaConf.merge(schema(), dataclasses.asdict(config), _fresh(group), base, own)
        yield f"{stage}:{name}", to_config(merged)


def _fresh(group: str) -> dict:
    """The defaults of a section: what another variant's file has set must not linger."""
    return {group: OmegaConf.to_container(schema()[group])}
