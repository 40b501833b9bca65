"""Planted truth: activation records with known dictionary atoms, and readouts with known interactions."""
