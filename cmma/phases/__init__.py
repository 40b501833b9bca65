"""How features change with depth (paper, section 5.3): classes and cross-modal activity by layer, and tests of phases.

    layers (one dictionary of one layer) → units (a model with a seed) → analysis (thirds, change points, ANOVA)
"""
