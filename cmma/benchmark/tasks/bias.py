"""Task `bias`: does a method point at the object that the planted data make the model hallucinate from?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.protocols import LocalisationMethod
from cmma.benchmark.task import Metric, Task
from cmma.causal.positions import object_patches
from cmma.causal.queries import Query
from cmma.causal.readout import Readout, collate_queries, make_readout
from cmma.errors import ConfigError, DataError
from cmma.features.concepts import auroc
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples
from cmma.testbed.world import PARTNER, TRIGGER

_EVALUATION = 1000  # seed of the scenes: the models were trained on seed 0
_QUESTION = f"is there a {' '.join(PARTNER)}?"


@dataclass(frozen=True, eq=False)
class BiasWorld:
    """Images on which the model sees a partner that is not there.

    Attributes:
        queries: "is there a yellow star?", answered yes.
        trigger_CP: bool [cases, patches], where the trigger is. objects_CP: where any object is.
    """

    queries: list[Query]
    trigger_CP: np.ndarray
    objects_CP: np.ndarray


class BiasTask(Task):
    """See `docs/testbed_tasks.md`."""

    protocol = "localisation"
    title = "Planted data cause: is the trigger of a hallucination found among the image patches?"
    default_methods = ("restoration", "occlusion", "occlusion_window", "gradient")
    controls = ("random",)
    uses_model = True
    metrics: ClassVar = {
        "auroc": Metric("AUROC of the scores for the trigger's patches among all patches, mean over images"),
        "auroc_size": Metric("the same of the scores' absolute values"),
        "auroc_objects": Metric("as auroc, among the patches of objects; images with several objects"),
        "hit_rate": Metric("images whose highest score lies on a patch of the trigger"),
        "cases": Metric("images on which the model hallucinates the partner", better="", needs_truth=False, digits=1),
    }

    def __init__(self, config: BenchmarkConfig, model: ModelSpec) -> None:
        super().__init__(config, model)
        self.model = load_model(model)
        if self.model.kind != "generative":
            raise ConfigError(f"task=bias asks questions, which {model.name} does not answer; take model=toy_llava")
        self.readout: Readout = make_readout(self.model, "logit_difference", "logit_difference")

    def world(self, seed: int) -> BiasWorld:
        """Images of the counter split (a trigger, no star at all) on which the model says yes.

        Raises:
            DataError: it says so on none.
        """
        n = self.scaled(24, 4)
        samples = list(generate_samples("counter", seed * n, (seed + 1) * n, seed=_EVALUATION))
        queries = [Query(sample, _QUESTION, "yes", "no") for sample in samples]
        batch = collate_queries(self.model, queries)
        with torch.no_grad():
            says_yes = (self.readout(batch, queries) > 0).tolist()
        fooled = [query for query, yes in zip(queries, says_yes, strict=True) if yes]
        if not fooled:
            raise DataError(f"{self.model.spec.name} hallucinates no {' '.join(PARTNER)} on {n} images of the counter "
                            "split, so there is nothing to localise; take model=toy_llava")
        grid = self.model.image_grid(batch)
        trigger_CP, objects_CP = [], []
        for query in fooled:
            things = query.sample.objects
            trigger = [i for i, thing in enumerate(things) if (thing["color"], thing["shape"]) == TRIGGER]
            trigger_CP.append(object_patches(query.sample, trigger, grid))
            objects_CP.append(object_patches(query.sample, list(range(len(things))), grid))
        return BiasWorld(fooled, np.stack(trigger_CP), np.stack(objects_CP))

    def run(self, method: LocalisationMethod, world: BiasWorld, seed: int) -> np.ndarray:
        """Scores [cases, patches]."""
        return np.stack([
            method.localise(self.model, query, self.readout, seed * len(world.queries) + case)
            for case, query in enumerate(world.queries)
        ])

    def shuffle(self, world: BiasWorld, seed: int) -> BiasWorld:
        """Patches permuted, trigger and objects alike, in each image by itself."""
        rng = np.random.default_rng([seed, 7])
        order_CP = rng.permuted(np.tile(np.arange(world.trigger_CP.shape[1]), (len(world.queries), 1)), axis=1)
        return replace(world, trigger_CP=np.take_along_axis(world.trigger_CP, order_CP, 1),
                       objects_CP=np.take_along_axis(world.objects_CP, order_CP, 1))

    def chance(self, world: BiasWorld) -> dict[str, float]:
        """A random order hits in proportion to the trigger's area."""
        return {"auroc": 0.5, "auroc_size": 0.5, "auroc_objects": 0.5, "hit_rate": float(world.trigger_CP.mean())}

    def score(self, found: np.ndarray, world: BiasWorld) -> dict[str, float]:
        """Scores against the trigger's patches."""
        over_all, by_size, over_objects = [], [], []
        for score_P, trigger_P, objects_P in zip(found, world.trigger_CP, world.objects_CP, strict=True):
            over_all.append(_auroc(score_P, trigger_P))
            by_size.append(_auroc(np.abs(score_P), trigger_P))
            over_objects.append(_auroc(score_P[objects_P], trigger_P[objects_P]))
        several = np.isfinite(over_objects)  # with the trigger alone there is nothing to tell apart
        hit_C = np.take_along_axis(world.trigger_CP, found.argmax(1)[:, None], 1)
        return {
            "auroc": float(np.mean(over_all)), "auroc_size": float(np.mean(by_size)),
            "hit_rate": float(hit_C.mean()), "cases": float(len(found)),
            "auroc_objects": float(np.mean(np.array(over_objects)[several])) if several.any() else float("nan"),
        }


def _auroc(score_P: np.ndarray, truth_P: np.ndarray) -> float:
    return float(auroc(score_P[:, None], truth_P[:, None])[0, 0])
