"""Bootstrap, permutation, effect size, corrections, analysis of variance.

Plain functions of numpy arrays. Import from the module that owns the idea, e.g.
`from cmma.statistics.bootstrap import bootstrap_mean`.
"""
