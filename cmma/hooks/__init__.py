"""Trace (read) and Edit (write) activations at named sites."""
