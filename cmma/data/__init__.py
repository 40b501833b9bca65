"""Samples: what they are, how they are read, cleaned and written."""
