"""The value that passes a site, and functions that rewrite it on its way.

PyTorch calls a module's hooks in order of registration. Edits go before all others (transformers collects hidden states
by hooks of its own, which would miss a later change) and run in the order in which they were attached; readers go after
all others and see what really flows on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cmma.models.sites import Site

Rewrite = Callable[[Tensor], Tensor]


def first(value: Any) -> Tensor:
    """The activation in a module's output or arguments: itself, or the first entry of a tuple."""
    return value[0] if isinstance(value, tuple) else value


def with_first(value: Any, new: Tensor) -> Any:
    """`value` with its activation replaced by `new`; other entries of a tuple are kept."""
    return (new, *value[1:]) if isinstance(value, tuple) else new


def tokens(site: Site, value: Any) -> Tensor:
    """The activation that passes `site`; of a map [B, C, rows, columns], the tokens [B, rows · columns, C]."""
    found = first(value)
    return found.flatten(2).transpose(1, 2) if site.port == "map" else found


def with_tokens(site: Site, value: Any, new: Tensor) -> Any:
    """`value` with the activation that passes `site` replaced by `new`."""
    return with_first(value, new.transpose(1, 2).reshape(first(value).shape) if site.port == "map" else new)


def attach_reader(site: Site, read: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `read` with every activation that passes `site`, after all edits."""
    if site.port == "input":
        return site.module.register_forward_pre_hook(lambda _, args: read(first(args)))
    return site.module.register_forward_hook(lambda _, __, output: read(tokens(site, output)))


def attach_rewrite(site: Site, rewrite: Rewrite) -> Callable[[], None]:
    """Replace every activation that passes `site` by `rewrite` of it, until the returned function is called."""
    chains = _chains.setdefault(site.module, {})
    chain = chains.setdefault(site.port, _Chain(site))
    chain.rewrites.append(rewrite)

    def release() -> None:
        chain.rewrites.remove(rewrite)
        if not chain.rewrites:
            chain.handle.remove()
            chains.pop(site.port, None)

    return release


class _Chain:
    """The rewrites attached to one port, in order, behind a single hook that runs first."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.rewrites: list[Rewrite] = []
        self.handle = (
            site.module.register_forward_pre_hook(lambda _, args: self.apply(args), prepend=True)
            if site.port == "input"
            else site.module.register_forward_hook(lambda _, __, output: self.apply(output), prepend=True)
        )

    def apply(self, value: Any) -> Any:
        activation = tokens(self.site, value)
        for rewrite in tuple(self.rewrites):
            activation = rewrite(activation)
        return with_tokens(self.site, value, activation)


_chains: WeakKeyDictionary[nn.Module, dict[str, _Chain]] = WeakKeyDictionary()
