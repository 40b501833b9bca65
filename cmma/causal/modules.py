"""Rows of a trace: which sites of which layers are restored, per module of a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cmma.causal.config import TraceConfig
from cmma.causal.passes import Part
from cmma.errors import ConfigError
from cmma.models.base import MultimodalModel

PORTS = {
    "residual": ("resid_post",),
    "mlp": ("mlp_out",),
    "attention": ("attn_out", "attn2_out"),
    "self_attention": ("attn_out", "attn1_out"),
    "cross_attention": ("cross_attn_out", "attn2_out"),
    "head": ("heads", "attn1_heads"),
    "cross_head": ("cross_heads", "attn2_heads"),
}
"""Module → last part of its site's name, where there are layers or a U-Net's blocks."""

HEADS = ("head", "cross_head")
"""Modules of which every head is a row of its own."""


def trace_rows(model: MultimodalModel, stream: str, config: TraceConfig) -> dict[str, tuple[str | Part, ...]]:
    """Row name → sites restored together: a window of layers around each row's own; or the single heads of each layer.

    A head's row is called after its site and its number: "language.layers.3.heads.0".

    Raises:
        ConfigError: no such stream, layer or module in the model.
    """
    sites = module_sites(model, stream, config.module)
    depth = len(sites)
    layers = range(depth) if config.layers is None else config.layers
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise ConfigError(f"trace.layers holds {wrong[0]}; {stream} layers of {model.spec.name} are 0 to {depth - 1}")
    if config.module in HEADS:
        return {
            f"{sites[layer]}.{number}": (part,)
            for layer in layers
            for number, part in enumerate(head_parts(model, sites[layer]))
        }
    return {sites[layer]: tuple(sites[slice(*window(layer, config.window, depth))]) for layer in layers}


def module_sites(model: MultimodalModel, stream: str, module: str) -> list[str]:
    """The sites of a module in every layer of a stream, from below. Raises ConfigError where there are none."""
    found = _sites(model, stream, PORTS[module])
    if not found:
        others = [name for name, ports in PORTS.items() if _sites(model, stream, ports)]
        known = f"that stream has {', '.join(others)}" if others else f"its streams are {', '.join(model.streams)}"
        raise ConfigError(
            f"{model.spec.name} has no sites {stream}.layers.*.{'|'.join(PORTS[module])} (trace.module={module}, "
            f"trace.stream={stream}); {known}"
        )
    return sorted(found, key=lambda name: int(name.split(".")[-2]))


def head_parts(model: MultimodalModel, site: str) -> list[Part]:
    """The single heads of a site that holds their outputs side by side."""
    n_heads = model.n_heads(site)
    reads: Any = model.site(site).module  # a linear map, whose input the heads are
    width = reads.in_features // n_heads
    return [Part(site, width * head, width * (head + 1)) for head in range(n_heads)]


def window(centre: int, width: int, depth: int) -> tuple[int, int]:
    """First and last + 1 of `width` layers around `centre`, cut off at the ends (ROME's convention)."""
    return max(0, centre - width // 2), min(depth, centre - width // 2 + width)


def grid_layer(model: MultimodalModel, stream: str, rows: Mapping[str, Sequence[str | Part]]) -> int | None:
    """A layer that stands for the grid of all rows; None in streams whose layers all have one.

    Raises:
        ConfigError: the U-Net's blocks of these rows have maps of different sizes, so that their patches do not match.
    """
    if stream != "unet":
        return None
    sites = {part.site if isinstance(part, Part) else part for parts in rows.values() for part in parts}
    layers = sorted({int(site.split(".")[-2]) for site in sites})
    sizes = {layer: model.image_grid({}, layer)[0] for layer in layers}
    if len(set(sizes.values())) > 1:
        alike = [layer for layer, size in sizes.items() if size == max(sizes.values())]
        raise ConfigError(
            f"blocks {layers[0]} to {layers[-1]} of {model.spec.name} have maps of different sizes; set "
            f"trace.layers to blocks of one size, for example {alike}"
        )
    return layers[0]


def _sites(model: MultimodalModel, stream: str, ports: Sequence[str]) -> list[str]:
    numbered = re.compile(rf"{stream}\.(layers|blocks)\.\d+\.({'|'.join(ports)})")
    return [name for name in model.site_names() if numbered.fullmatch(name)]
