"""Hallucination mitigation: find the features behind it, make them weaker, and say what that does and what it costs.

- `spoken`: objects that a model names, and whether they are there; `prone`: features behind those that are not.
- `steering`: features made weaker, and the controls; `published`: other ways of steering.
- `examination`: what a steered model says, counted; `calibration`: the choice of strength; `comparison`: the test.
- `mitigate.mitigate` does all of it; `cause`: do the features lie on the shapes world's planted cause?
"""
