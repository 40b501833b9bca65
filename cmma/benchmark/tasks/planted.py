"""Task `planted`: does a dictionary find the atoms of planted activations, their class, and who belongs together?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmma.benchmark.codes import Codes, encode_tokens, latent_classes
from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.protocols import Budget, Dictionary, DictionaryMethod
from cmma.benchmark.recovery import RECALL_AT, Matching, match, random_cosines, recovery
from cmma.benchmark.task import Metric, Task
from cmma.evaluation.retrieval import retrieve
from cmma.features.concepts import auroc, best_threshold, f1, halves
from cmma.features.pairing import (
    bridge_diagonal,
    code_cosine,
    concept_jaccard,
    modality_score,
    normalised_error,
    retrievable,
    support_jaccard,
)
from cmma.modality import Modality
from cmma.models.spec import ModelSpec
from cmma.sae.metrics import SAEMetrics
from cmma.sae.records import TensorReader
from cmma.testbed.planted.activations import PlantedSamples, plant
from cmma.testbed.planted.atoms import Atoms, plant_atoms
from cmma.testbed.planted.config import CLASSES

_BLOCK = 100  # candidates of retrieval
_MIDDLE = (0.05, 0.95)  # modality scores of a latent that both modalities use
_OTHER_WORLD = 2**20  # added to the seed of atoms that the data were not made from


@dataclass(frozen=True, eq=False)
class PlantedWorld:
    """Data and truth of one seed. Shuffling changes the last four and nothing else.

    Attributes:
        reader, budget: what methods get.
        test: fresh samples, with their atoms.
        targets: atoms whose recovery is asked for.
        class_A: class of each atom of `test`.
        truth_N: the sample whose codes and labels are held against sample i.
        partner_N: the sample whose text token is paired with image token i.
    """

    reader: TensorReader
    budget: Budget
    test: PlantedSamples
    targets: Atoms
    class_A: np.ndarray
    truth_N: np.ndarray
    partner_N: np.ndarray


class PlantedTask(Task):
    """See `docs/testbed_tasks.md`."""

    protocol = "dictionary"
    title = "Planted activations: recovery of known visual, textual and shared atoms"
    default_methods = ("msae", "standard", "topk", "pca")
    controls = ("untrained", "frozen_decoder")
    metrics: ClassVar = {
        "max_cosine": Metric("mean over atoms of the largest cosine with any latent"),
        "matched_cosine": Metric("mean cosine after one-to-one matching"),
        "recall_visual": Metric("visual atoms matched at cosine ≥ 0.9"),
        "recall_textual": Metric("textual atoms matched at cosine ≥ 0.9"),
        "recall_shared": Metric("directions of shared concepts matched at cosine ≥ 0.9"),
        "activation_f1": Metric("F1 of 'the matched latent is active' for 'the atom is', mean over atoms"),
        "cr": Metric("shared concepts whose best latent is the same in both modalities, at cosine > 0.95 in both"),
        "gre": Metric("share of an atom's squared norm that its best latent leaves", better="down"),
        "class_accuracy": Metric("class of recovered atoms by the interval of S^v S^t against tau = 0.1"),
        "class_accuracy_free": Metric("class of recovered atoms by S^v S^t > 0.5, without tau"),
        "label_auroc": Metric("AUROC of the best latent for each atom's presence in a sample"),
        "concept_jaccard": Metric("concepts of a latent's strongest images and of its strongest texts, Jaccard"),
        "code_cosine": Metric("cosine of the codes of a pair's image and text"),
        "code_cosine_floor": Metric("the same for shuffled pairs", better="", needs_truth=False),
        "support_jaccard": Metric("latents active in both codes of a pair, of those in either"),
        "support_jaccard_floor": Metric("the same for shuffled pairs", better="", needs_truth=False),
        "bridge_diagonal": Metric("share of the bridge between modalities that runs through single latents"),
        "retrieval": Metric("R@1 of the partner among 100 by the codes' cosine, both directions"),
        "cross_error": Metric("NMSE of the text token decoded from the image's code", better="down"),
        "modality_share": Metric("live latents with modality score in [0.05, 0.95]", better="", needs_truth=False),
        "fvu_visual": Metric("unexplained variance of image tokens", better="down", needs_truth=False),
        "fvu_textual": Metric("unexplained variance of text tokens", better="down", needs_truth=False),
        "l0": Metric("active latents per record", better="", needs_truth=False, digits=1),
        "dead": Metric("latents silent on the whole test set", better="down", needs_truth=False),
    }

    def __init__(self, config: BenchmarkConfig, model: ModelSpec) -> None:
        super().__init__(config, model)
        self.n_train, self.n_test = self.scaled(12_000, 400), self.scaled(2000, 200)
        self.steps = self.scaled(1200, 20)

    def world(self, seed: int) -> PlantedWorld:
        """A planted world whose seed is the benchmark's."""
        config = replace(self.config.planted, seed=seed)
        train, test = plant(config, "train", 0, self.n_train), plant(config, "test", 0, self.n_test)
        visual, textual = (self.config.l0_ratio * float(n) for n in (train.codes_NMA > 0).sum(2).mean(0))
        budget = Budget(self.config.n_latents, (visual, textual), self.steps)
        rows = np.arange(len(test))
        return PlantedWorld(train.reader(), budget, test, test.atoms, test.atoms.class_A, rows, rows)

    def run(self, method: DictionaryMethod, world: PlantedWorld, seed: int) -> Dictionary:
        """Fit a dictionary to the training records."""
        return method.fit(world.reader, world.budget, seed)

    def shuffle(self, world: PlantedWorld, seed: int) -> PlantedWorld:
        """Atoms of another world, classes, codes, labels and pairs permuted."""
        rng = np.random.default_rng([seed, _OTHER_WORLD])
        others = plant_atoms(replace(world.test.config, seed=world.test.config.seed + _OTHER_WORLD))
        n = len(world.test)
        return replace(
            world, targets=others, class_A=rng.permutation(world.class_A), truth_N=rng.permutation(n),
            partner_N=rng.permutation(n),
        )

    def chance(self, world: PlantedWorld) -> dict[str, float]:
        """Closed forms for random directions and for latents that are independent of the truth."""
        config, atoms = world.test.config, world.test.atoms
        random = random_cosines(config.d, self.config.n_latents)
        rate_A = (world.test.codes_NMA > 0).mean(0)[atoms.present_MA]
        share_C = np.bincount(world.class_A, minlength=len(CLASSES)) / len(atoms)
        unit_C = np.bincount(np.broadcast_to(atoms.class_A, atoms.present_MA.shape)[atoms.present_MA],
                             minlength=len(CLASSES)) / atoms.present_MA.sum()
        accuracy = float(share_C @ unit_C)
        return {
            "max_cosine": random["max_cosine"], "gre": random["gre"], "recall_visual": random["recall"],
            "recall_textual": random["recall"], "recall_shared": random["recall"], "cr": 0.0,
            # Who knows only how often an atom fires does best by always saying yes: F1 = 2p / (1 + p).
            "activation_f1": float((2 * rate_A / (1 + rate_A)).mean()),
            "class_accuracy": accuracy, "class_accuracy_free": accuracy, "label_auroc": 0.5,
            "retrieval": 1 / min(_BLOCK, len(world.test)), "cross_error": 1.0,
        }

    def score(self, found: Dictionary, world: PlantedWorld) -> dict[str, float]:
        """All metrics on the test samples."""
        acts_NMW = torch.from_numpy(world.test.acts_NMW)
        alone, codes = encode_tokens(found, acts_NMW), encode_tokens(found, acts_NMW, in_context=True)
        decoder_MKW = found.decoder_MKW.numpy()
        matching = match(decoder_MKW, world.test.atoms)
        targets = matching if world.targets is world.test.atoms else match(decoder_MKW, world.targets)
        result = recovery(targets, world.targets)
        result |= {"activation_f1": _activation_f1(codes, matching, world), "label_auroc": _label_auroc(codes, world)}
        result |= _class_accuracy(codes, matching, world)
        result |= _pairs(alone, found, acts_NMW, world)
        return result | _reconstruction(codes, found, acts_NMW)


def _activation_f1(codes: Codes, matching: Matching, world: PlantedWorld) -> float:
    """Threshold on one half of the samples, F1 on the other; an atom without a latent scores 0."""
    choose, score = halves(len(world.test))
    values = []
    for modality, latents_NK in enumerate(codes):
        fires_NA = world.test.codes_NMA[world.truth_N, modality] > 0
        for atom in np.flatnonzero(world.test.atoms.present_MA[modality]):
            latent = matching.latent_MA[modality, atom]
            if latent < 0:
                values.append(0.0)
                continue
            scores_N, truth_N = latents_NK[:, latent].numpy(), fires_NA[:, atom]
            threshold = best_threshold(scores_N[choose], truth_N[choose])
            values.append(f1(scores_N[score] >= threshold, truth_N[score]))
    return float(np.mean(values))


def _label_auroc(codes: Codes, world: PlantedWorld) -> float:
    """For each atom the latent of highest AUROC on one half of the samples, scored on the other; mean over atoms."""
    choose, score = halves(len(world.test))
    labels_NA, latents_NK = world.test.carries_NA[world.truth_N], codes.strongest_NK.numpy()
    best_A = np.nan_to_num(auroc(latents_NK[choose], labels_NA[choose])).argmax(0)
    scored_KA = auroc(latents_NK[score], labels_NA[score])
    return float(np.nanmean(scored_KA[best_A, np.arange(len(best_A))]))


def _class_accuracy(codes: Codes, matching: Matching, world: PlantedWorld) -> dict[str, float]:
    """Share of recovered atoms (once per modality) whose latent is classified as what the atom is; NaN if none is."""
    classes = latent_classes(codes)
    modality, atom = np.nonzero(matching.matched_MA >= RECALL_AT)
    latent, truth = matching.latent_MA[modality, atom], np.array(CLASSES)[world.class_A[atom]]
    if not len(atom):
        return {"class_accuracy": float("nan"), "class_accuracy_free": float("nan")}
    return {
        "class_accuracy": float((classes.by_tau_K[latent] == truth).mean()),
        "class_accuracy_free": float((classes.free_K[latent] == truth).mean()),
    }


def _pairs(codes: Codes, found: Dictionary, acts_NMW: Tensor, world: PlantedWorld) -> dict[str, float]:
    """Metrics of image–text pairs."""
    visual_NK, partner_NK = codes.visual_NK, codes.textual_NK[world.partner_N]
    strangers_NK = codes.textual_NK.roll(1, 0)
    ranks = retrieve(retrievable(visual_NK, 0), retrievable(partner_NK, 1), _BLOCK)
    score_K = modality_score(visual_NK, codes.textual_NK)
    live_K = score_K[score_K.isfinite()]
    labels_NC = torch.from_numpy(world.test.concepts_NC)
    # What a latent's texts show is asked of the permuted labels: their images keep theirs.
    jaccard_K = concept_jaccard(visual_NK, codes.textual_NK[world.partner_N], labels_NC)
    textual_N = torch.full((len(visual_NK),), int(Modality.TEXTUAL), dtype=torch.int8)
    return {
        "concept_jaccard": float(jaccard_K.nanmean()),
        "code_cosine": float(code_cosine(visual_NK, partner_NK).mean()),
        "code_cosine_floor": float(code_cosine(visual_NK, strangers_NK).mean()),
        "support_jaccard": float(support_jaccard(visual_NK, partner_NK).mean()),
        "support_jaccard_floor": float(support_jaccard(visual_NK, strangers_NK).mean()),
        "bridge_diagonal": bridge_diagonal(visual_NK, partner_NK, *found.decoder_MKW),
        "retrieval": float((np.mean(ranks.image_to_text_N == 0) + np.mean(ranks.text_to_image_N == 0)) / 2),
        "cross_error": normalised_error(
            found.decode(visual_NK, textual_N), acts_NMW[world.partner_N, int(Modality.TEXTUAL)]),
        "modality_share": float(((live_K >= _MIDDLE[0]) & (live_K <= _MIDDLE[1])).double().mean()),
    }


def _reconstruction(codes: Codes, found: Dictionary, acts_NMW: Tensor) -> dict[str, float]:
    metrics = SAEMetrics(acts_NMW.shape[2], codes.visual_NK.shape[1])
    for modality, latents_NK in enumerate(codes):
        codes_N = torch.full((len(latents_NK),), modality, dtype=torch.int8)
        metrics.update(acts_NMW[:, modality], found.decode(latents_NK, codes_N), latents_NK, codes_N)
    summary = metrics.summary()
    return {name: summary[name] for name in ("fvu_visual", "fvu_textual", "l0")} | {"dead": summary["dead_fraction"]}
