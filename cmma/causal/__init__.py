"""Causal tracing by activation patching, and interventions on dictionary features.

Every method is a way to build *runs*: a clean run, a corrupt run, and what is restored from the one to the other.

- `patching.activation_patch`: the one engine; `tracing.trace` feeds it from a `TraceConfig`.
- `corruptions`: noise at the image embeddings, semantic image pairs, symmetric token replacement.
- `selection.select_features` and `interventions.run_intervention` (Eq. 8-11, clamping, controls);
  `intervening.intervene` feeds them from an `InterventionConfig`.
"""
