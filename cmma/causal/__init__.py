"""Tracing, patching and feature interventions."""
