"""Trace (read) and Edit (write) activations at named sites of any model, and Knockout of attention between positions.

Nothing here knows a family. `from cmma.hooks import Trace, Edit, TokenEdit, Where, Knockout, splice`; torch is imported
at that moment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmma.hooks.edit import Edit, TokenEdit, Where
    from cmma.hooks.knockout import Knockout
    from cmma.hooks.streams import splice
    from cmma.hooks.trace import Trace

__all__ = ["Edit", "Knockout", "TokenEdit", "Trace", "Where", "splice"]

_MODULES = {
    "Edit": "edit", "TokenEdit": "edit", "Where": "edit", "Trace": "trace", "Knockout": "knockout", "splice": "streams",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
