"""Controllable generation through dictionary features (paper, section 5.5.3, Table 2; docs/control.md)."""
