"""Several configurations of one stage side by side: the traces and interventions of `cmma run` and of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from omegaconf import OmegaConf

from cmma.config import Config, config_dir, load_group, schema, to_config

# Stage → (configuration group that holds its variants, the list in RunConfig).
_GROUPS = {"trace": ("trace", "traces"), "intervene": ("intervention", "interventions")}


def variants(
    stage: str, config: Config, overrides: Sequence[str] = (), every: bool = False
) -> Iterator[tuple[str, Config]]:
    """Name and configuration of the listed variants of a stage; a stage without variants has one, of its own name.

    With `every`, of all files of the group, and of what is listed beside them.

    A variant is its file in the group on top of what the configuration says of the keys that no file of the group sets,
    with the user's own `group.key=value` overrides on top of both.

    Raises:
        ConfigError: `run.traces` or `run.interventions` names a file that is not there.
    """
    if stage not in _GROUPS:
        yield stage, config
        return
    group, listed = _GROUPS[stage]
    typed = OmegaConf.from_dotlist([word.lstrip("+") for word in overrides if word.lstrip("+").startswith(f"{group}.")])
    files = {path.stem: load_group(group, path.stem) for path in sorted((config_dir() / group).glob("*.yaml"))}
    chosen = dataclasses.asdict(config)
    for key in {key for content in files.values() for key in content}:
        del chosen[group][key]  # what sets variants apart goes back to its default; the rest is common to all
    names = getattr(config.run, listed)
    for name in dict.fromkeys([*names, *files]) if every else names:
        own = {group: files[name] if name in files else load_group(group, name)}
        yield f"{stage}:{name}", to_config(OmegaConf.merge(schema(), chosen, own, typed))
