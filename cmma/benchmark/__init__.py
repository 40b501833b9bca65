"""Scores methods of interpretability against truth that is known (`docs/testbed_tasks.md`)."""
