"""The methods that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cmma.baselines.ground import Ground
from cmma.baselines.methods.attention import AttentionHeads
from cmma.baselines.methods.base import Method
from cmma.baselines.methods.dictionaries import msae, standard_sae
from cmma.baselines.methods.gradients import GradCAM, IntegratedGradients
from cmma.baselines.methods.pca import pca
from cmma.baselines.methods.probes import LinearProbe, MLPProbe
from cmma.baselines.methods.random_directions import random_directions
from cmma.baselines.methods.shapley import Shapley
from cmma.sae.architectures.base import SparseAutoencoder


def build_methods(ground: Ground, dictionaries: Mapping[str, SparseAutoencoder]) -> list[Method]:
    """The methods of `config.methods`, in the order of the tables.

    Args:
        dictionaries: `msae` and, where it is compared, `standard_sae`, trained on the ground's records.
    """
    makers: dict[str, Callable[[], Method]] = {
        "msae": lambda: msae(ground, dictionaries["msae"]),
        "standard_sae": lambda: standard_sae(ground, dictionaries["standard_sae"]),
        "pca": lambda: pca(ground),
        "attention": lambda: AttentionHeads(ground),
        "integrated_gradients": lambda: IntegratedGradients(ground),
        "grad_cam": lambda: GradCAM(ground),
        "linear_probe": lambda: LinearProbe(ground),
        "mlp_probe": lambda: MLPProbe(ground),
        "shap": lambda: Shapley(ground),
        "random_directions": lambda: random_directions(ground, dictionaries["msae"].n_latents),
    }
    return [make() for name, make in makers.items() if name in ground.config.methods]
