"""Linear and MLP probes (scikit-learn), trained on the labelled selection images' mean image token."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from cmma.baselines.ground import Ground, Images, Mentions, NotApplicable, image_records
from cmma.baselines.methods.base import DirectionMethod, Method, Reading
from cmma.mitigation.steering import Steering
from cmma.sae.architectures.base import SparseAutoencoder


class LinearProbe(DirectionMethod):
    """Logistic regression for each concept; its weight is read at the patches, and steered along."""

    def __init__(self, ground: Ground) -> None:
        super().__init__("linear probe", ground)
        x_ID, truth_IC = _mean_tokens(ground, ground.selection), ground.selection.labels.truth_NC
        self._probe = OneVsRestClassifier(_logistic()).fit(x_ID, truth_IC.astype(int))

    def read(self, images: Images) -> Reading:
        """Log-odds, of the mean token for the image and of each token for the map."""
        tokens_IPD = self.ground.standardise(images.records_IPD).cpu().numpy()
        bias_C = np.concatenate([each.intercept_ for each in self._probe.estimators_])
        maps_IPC = tokens_IPD @ self._weight_CD.T + bias_C
        return Reading(maps_IPC, maps_IPC.mean(axis=1), by_concept=True)

    def concept_directions(self) -> Tensor:
        """See `DirectionMethod.concept_directions`."""
        return torch.from_numpy(self._weight_CD).float()

    @property
    def _weight_CD(self) -> np.ndarray:
        return np.concatenate([each.coef_ for each in self._probe.estimators_])

    def hallucination_direction(self, mentions: Mentions) -> Tensor:
        """Of a probe that tells images whose captions hallucinate, at the mean image token."""
        samples = [mention.sample for mention in mentions.units]
        records_IPD = image_records(self.ground.model, self.ground.layer, samples, self.ground.config.batch_size)
        x_ID = self.ground.standardise(records_IPD).mean(1).cpu().numpy()
        return torch.from_numpy(_logistic().fit(x_ID, mentions.label_N).coef_[0]).float()


class MLPProbe(Method):
    """One hidden layer for all concepts together."""

    def __init__(self, ground: Ground) -> None:
        super().__init__("MLP probe", ground)
        x_ID, truth_IC = _mean_tokens(ground, ground.selection), ground.selection.labels.truth_NC
        self._probe = MLPClassifier(
            (ground.config.hidden,), solver="lbfgs", alpha=1.0, max_iter=5000, tol=1e-3, random_state=ground.config.seed
        ).fit(x_ID, truth_IC.astype(int))

    def read(self, images: Images) -> Reading:
        """Probabilities, of the mean token for the image and of each token for the map."""
        tokens_IPD = self.ground.standardise(images.records_IPD).cpu().numpy()
        maps_IPC = self._probe.predict_proba(tokens_IPD.reshape(-1, tokens_IPD.shape[-1]))
        return Reading(
            maps_IPC.reshape(*tokens_IPD.shape[:2], -1), self._probe.predict_proba(tokens_IPD.mean(1)), by_concept=True)

    def steerings(self, mentions: Mentions) -> list[Steering] | NotApplicable:
        """It has no direction."""
        return NotApplicable("a probe that bends has another gradient at every token; see the linear probe")

    def dictionary(self) -> SparseAutoencoder | NotApplicable:
        """It has no directions."""
        return NotApplicable("a probe that bends has another gradient at every token; see the linear probe")


def _logistic() -> LogisticRegression:
    """Strongly regularised: there are fewer labelled images than dimensions."""
    return LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)


def _mean_tokens(ground: Ground, images: Images) -> np.ndarray:
    return ground.standardise(images.records_IPD).mean(1).cpu().numpy()
