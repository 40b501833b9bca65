"""Metrics under their real names."""
