"""Which dictionaries of a sweep train together: those that want the same batches, as many as memory holds."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable

import torch

from cmma.console import say
from cmma.sae.architectures.registry import CLASSES
from cmma.sae.standardiser import Standardiser
from cmma.stages.runner import Stage

_BYTES_PER_PARAMETER = 16
"""A weight, its gradient and Adam's two moments, in single precision."""
_MEMORY_SHARE = 0.75
"""Of the memory, for dictionaries in training; the rest is for records and for what a step takes."""


def passes(stages: Iterable[Stage]) -> list[list[Stage]]:
    """The stages in groups that share one pass over the activations, in their order."""
    alike: dict[Hashable, list[Stage]] = {}
    for stage in stages:
        optim, activations = stage.config.optim, stage.parents["cache-activations"].key
        wanted = (activations, stage.config.sae_layer(), optim.batch, optim.order_seed,
                  CLASSES[stage.config.sae.arch].reads_pairs, stage.device, stage.config.launch)
        alike.setdefault(wanted, []).append(stage)
    return [group for same in alike.values() for group in _fitting(same)]


def _fitting(stages: list[Stage]) -> list[list[Stage]]:
    """Split where the next dictionary would no longer fit into memory beside those before it."""
    groups: list[list[Stage]] = [[]]
    free = limit = _MEMORY_SHARE * _memory(stages[0].device)
    for stage in stages:
        needed = _BYTES_PER_PARAMETER * _n_parameters(stage)
        if groups[-1] and needed > free:
            groups.append([])
            free = limit
        groups[-1].append(stage)
        free -= needed
    if len(groups) > 1:
        say(f"{len(stages)} dictionaries do not fit into {limit / 1e9:.1f} GB of memory: they train in {len(groups)} "
            "groups, each with a pass of its own")
    return groups


def _n_parameters(stage: Stage) -> int:
    records = stage.parents["cache-activations"].read_json("records.json")
    blocks = records["blocks"][str(stage.config.sae_layer())]
    with torch.device("meta"):  # shapes without memory or random draws
        sae = CLASSES[stage.config.sae.arch](stage.config.sae, sum(blocks), Standardiser.identity(blocks))
    return sum(parameter.numel() for parameter in sae.parameters())


def _memory(device: str) -> int:
    """Bytes of the device, or of the machine."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
