"""Trace (read) and Edit (write) activations at named sites of any model; nothing here knows a family.

    from cmma.hooks.trace import Trace
    from cmma.hooks.edit import Edit, TokenEdit, Where
    from cmma.hooks.splice import splice
"""
