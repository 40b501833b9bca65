"""Which module is which method."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.data.samples import Sample
from cmma.models.base import MultimodalModel

_MODULES = {
    "noise": "patch_grid",
    "semantic_pair": "patch_grid",
    "token_replacement": "patch_grid",
    "knockout": "knockout",
    "attribution": "attribution",
    "sae_attribution": "sae_attribution",
    "logit_lens": "logit_lens",
    "cross_attention_maps": "cross_attention_maps",
    "prompt_swap": "prompt_swap",
    "head_text": "head_text",
    "sparse_concepts": "sparse_concepts",
    "constraint_window": "constraint_window",
    "universal_heads": "universal_heads",
    "corruptions": "corruptions",
    "factor_swap": "factor_swap",
}


def run_method(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Run the method that `config.method` names.

    Args:
        samples: of `config.split`.
        dictionary: for the methods of `cmma.causal.config.WITH_DICTIONARY`.

    Raises:
        ConfigError, DataError: as the method says.
    """
    module = importlib.import_module(f"cmma.causal.methods.{_MODULES[config.method]}")
    found: Findings = module.run(model, samples, config, dictionary)
    return found
