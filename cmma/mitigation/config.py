"""What can be configured about hallucination mitigation. A plain dataclass: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least, one_of, positive, share
from cmma.errors import ConfigError

SELECTIONS = ("attribution", "prediction", "union", "intersection")
PUBLISHED = ("save", "ssl", "projection", "heads", "prompt")


@dataclass(frozen=True)
class MitigationConfig:
    """How hallucination-prone features are found, how strongly they are changed, and what they are compared with.

    Attributes:
        split: split on which the model hallucinates.
        plain_split: a second split, on which nothing may get worse either: objects that are hallucinated in `split` are
            really there in some of its images.
        n_calibration: images of each split for finding features and choosing every strength, the first of the split.
        n_held_out: images of each split for the one test, the next of the split.
        tokens: whose activations the features are changed at: `all`, `visual` or `textual`.
        phase: when: `all`, `prefill` (the prompt with the image) or `decode` (the new tokens).
        selections: how features are found: `attribution` (of the object word's margin, at the point of mention),
            `prediction` (features that tell hallucinated from faithful mentions), their `union` or `intersection`.
        candidates: features that each ranking holds.
        steps: 1 = attribution by the gradient at the activations; more = integrated gradients.
        max_features: features that are changed together, at most.
        beam: candidates that compete for the next place, after the first.
        strengths: what is tried of s in a' = (1 - s) · a; 1 ablates.
        published: published ways that are compared: `save`, `ssl`, `projection` (ProjectAway), `heads`, `prompt`.
        gammas: strengths that are tried of SAVE and SSL, in units of the activations' norm.
        alphas: strengths that are tried of ProjectAway.
        head_counts: numbers of attention heads that are tried.
        prompt: instruction of `prompt`, which asks for what is there only.
        max_recall_loss: what recall may lose on the calibration images of either split, as a share.
        max_accuracy_loss: the same of question accuracy.
        n_questions: questions asked per split, in calibration and in the test each, and presence questions of each way.
        n_controls: draws of random features (matched in density) and of random directions (equal in norm).
        batch_size: samples in one forward pass.
        max_new_tokens: length limit of captions.
        n_bootstrap: resamples behind the intervals.
        seed: of the controls, of the drawn questions and of the resampling.
    """

    split: str = "counter"
    plain_split: str = "balanced"
    n_calibration: int = 80
    n_held_out: int = 150
    tokens: str = "visual"
    phase: str = "prefill"
    selections: list[str] = field(default_factory=lambda: list(SELECTIONS))
    candidates: int = 12
    steps: int = 1
    max_features: int = 5
    beam: int = 8
    strengths: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.1, 1.2, 1.3, 1.4])
    published: list[str] = field(default_factory=lambda: list(PUBLISHED))
    gammas: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.4])
    alphas: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])
    head_counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    prompt: str = "describe the image. mention only what is clearly there."
    max_recall_loss: float = 0.02
    max_accuracy_loss: float = 0.01
    n_questions: int = 200
    n_controls: int = 2
    batch_size: int = 100
    max_new_tokens: int = 96
    n_bootstrap: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("mitigation.tokens", self.tokens, ("all", "visual", "textual"))
        one_of("mitigation.phase", self.phase, ("all", "prefill", "decode"))
        for name, allowed in (("selections", SELECTIONS), ("published", PUBLISHED)):
            for each in getattr(self, name):
                one_of(f"mitigation.{name}", each, allowed)
        for name in ("candidates", "steps", "max_features", "beam", "n_controls", "batch_size", "max_new_tokens",
                     "n_bootstrap", "n_questions"):
            positive(f"mitigation.{name}", getattr(self, name))
        for name in ("n_calibration", "n_held_out"):
            at_least(f"mitigation.{name}", getattr(self, name), 2)
        for name in ("max_recall_loss", "max_accuracy_loss"):
            share(f"mitigation.{name}", getattr(self, name))
        for name in ("selections", "strengths", "gammas", "alphas", "head_counts"):
            if not getattr(self, name):
                raise ConfigError(f"mitigation.{name} is empty; give at least one")
        for name in ("strengths", "gammas", "alphas", "head_counts"):
            for value in getattr(self, name):
                positive(f"mitigation.{name}", value)
        if self.split == self.plain_split:
            raise ConfigError(f"mitigation.split and mitigation.plain_split are both {self.split!r}; take two splits")
        if self.tokens == "visual" and self.phase == "decode":
            raise ConfigError("mitigation.tokens=visual has nothing to change in mitigation.phase=decode: image tokens "
                              "are in the prompt; take phase=prefill")
