"""Bootstrap, permutation, effect size, corrections."""
