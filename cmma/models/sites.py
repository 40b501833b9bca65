"""Named places in a network: from the rows of an adapter's table to modules one can hook."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from cmma.errors import CmmaError, ConfigError
from cmma.modality import Modality

Port = Literal["output", "input", "map"]
"""Map: an output [B, C, rows, columns], seen as tokens [B, rows · columns, C]."""


class UnknownSite(ConfigError):
    """No such site in this model; the message names the nearest ones."""


@dataclass(frozen=True)
class Site:
    """A named place in the network: the output of a module, or the first positional input of it (see `Port`)."""

    name: str
    module: nn.Module
    port: Port = "output"


@dataclass(frozen=True)
class RecordSite:
    """Where a site's activation lies in the record vector: `vector[start : start + width]`.

    `modality` is None when it varies per token (one stream holds both modalities).
    """

    site: str
    modality: Modality | None
    start: int
    width: int


class SiteRow(NamedTuple):
    """One row of an adapter's table: `{l}` in `name` and `path` runs over the layers of `root`.

    Attributes:
        name: site name, such as "language.layers.{l}.mlp_out".
        root: key of the resolved module from which `path` starts.
        path: dotted path below the root; "" is the root itself.
        port: whether the site is the module's output or its first input.
    """

    name: str
    root: str
    path: str
    port: Port = "output"


class AttentionRow(NamedTuple):
    """One row of an adapter's table of attention modules; `{l}` in `path` runs over the layers of `queries`.

    Attributes:
        queries, keys: streams (and roots) of the positions that attend and of those that are attended to.
        path: dotted path of the module below the root of `queries`.
        mask: keyword argument that takes the mask.
        projection: path below the module of the output projection, where the module applies it itself; else "".
        causal: a position sees none after it, also where no mask is given.
        per_head: masks are [B · heads, Q, K], as torch's own module wants them.
    """

    queries: str
    keys: str
    path: str
    mask: str = "attention_mask"
    projection: str = ""
    causal: bool = False
    per_head: bool = False


@dataclass(frozen=True)
class Attention:
    """One attention module; the fields are those of its row."""

    name: str
    module: nn.Module
    row: AttentionRow
    layer: int


def expand_attention(
    table: Sequence[AttentionRow], roots: Mapping[str, nn.Module], depths: Mapping[str, int]
) -> list[Attention]:
    """Every attention module of a table, called "text.layers.3.attention" or "text.layers.3.cross_attention"."""
    found = []
    for row in table:
        kind = "attention" if row.queries == row.keys else "cross_attention"
        for layer in range(depths[row.queries]):
            module = roots[row.queries].get_submodule(row.path.format(l=layer))
            found.append(Attention(f"{row.queries}.layers.{layer}.{kind}", module, row, layer))
    return found


def expand(table: Sequence[SiteRow], roots: Mapping[str, nn.Module], depths: Mapping[str, int]) -> list[Site]:
    """Every site of a table.

    Args:
        table: the adapter's rows.
        roots: resolved modules by root name.
        depths: root name → number of layers that `{l}` runs over.
    """
    sites = []
    for row in table:
        layers = range(depths[row.root]) if "{l}" in row.name else (0,)
        for layer in layers:
            module = roots[row.root].get_submodule(row.path.format(l=layer))
            sites.append(Site(row.name.format(l=layer), module, row.port))
    return sites


def resolve(module: nn.Module, candidates: Sequence[str], what: str) -> nn.Module:
    """The first submodule among dotted paths that exists: library versions move modules about.

    Raises CmmaError naming every path that was looked for, and the nearest existing ones.
    """
    names = dict(module.named_modules(remove_duplicate=False))
    for path in candidates:
        if path in names:
            return names[path]
    near = difflib.get_close_matches(candidates[0], names, n=3, cutoff=0.0)
    raise CmmaError(
        f"{type(module).__name__} has no {what}: looked for {', '.join(candidates)}; the nearest are {', '.join(near)}"
    )
