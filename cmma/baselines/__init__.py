"""M-SAE beside six baselines on one readout, one split and one budget (`docs/baselines.md`).

- `config`: what can be configured; `ground`: the images, records and outputs that every method is given.
- `methods/`: one file per baseline; `methods.registry` builds them.
- `interpretability`, `hallucination`, `control`: the three comparisons; `measures`: their intervals; `run`: all of it.
"""
