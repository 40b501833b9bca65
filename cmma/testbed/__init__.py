"""A world in which the right answer is known, and small models trained on it."""
