"""Published ways of making vision-language models hallucinate less, each as a `Steering`.

They are compared under one rule: the strength is chosen on the calibration images, as that of the features is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmma.causal.logit_lens import internal_confidence
from cmma.causal.readout import batches, collate_queries
from cmma.data.samples import Sample
from cmma.evaluation.captioning import caption_samples
from cmma.evaluation.questions import Answered
from cmma.evaluation.vocabulary import Vocabulary
from cmma.features.concepts import auroc, best_threshold
from cmma.hooks import Edit, TokenEdit, Trace, Where, splice
from cmma.hooks.edit import EditFunction
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.prone import evidence
from cmma.mitigation.spoken import MentionReadout, SpokenMention, word_columns
from cmma.mitigation.steering import Steering, edits
from cmma.modality import Modality
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


def save(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample],
    answers: Sequence[Answered], config: MitigationConfig,
) -> Steering:  # fmt: skip
    """SAVE (arXiv 2512.07730): x + α (f_good - f_bad) at every token, prompt and answer.

    s_j = P(j fires | right) - P(j fires | wrong) at the last token of object-presence questions; f_good has the largest
    s_j, f_bad the smallest. The strength is α over the mean norm of the activations.

    Args:
        answers: to presence questions, by the unsteered model. samples: the image of each.
    """
    fires: list[Tensor] = []
    norms: list[Tensor] = []

    def note(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        norms.append(acts_ND.norm(dim=-1).float().cpu())
        ends = where.position.cpu() == end_B[where.batch_index.cpu()]
        fires.append(sae.encode(acts_ND, modality_N)[ends] > 0)
        return acts_ND

    with torch.no_grad(), splice(model, layer, TokenEdit(note, "all", "prefill")):
        for start in range(0, len(answers), config.batch_size):
            chunk = slice(start, start + config.batch_size)
            batch = model.collate(samples[chunk], [each.question.question for each in answers[chunk]])
            end_B = batch.prompt_end.cpu()
            model(**batch)
    fires_NK = torch.cat(fires).cpu().numpy()
    score_K = frequency_difference(fires_NK, np.array([each.correct for each in answers]))
    good_MD, bad_MD = (_directions(sae, int(chosen)) for chosen in (score_K.argmax(), score_K.argmin()))
    norm = float(torch.cat(norms).mean())

    def under(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
        def push(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            change_MD = (strength * norm * (good_MD - bad_MD)).to(acts_ND)
            return acts_ND + change_MD[modality_N.long()]

        return splice(model, layer, TokenEdit(push))

    return Steering("SAVE", under, tuple(config.gammas), features=(int(score_K.argmax()), int(score_K.argmin())),
                    signed=True)


def ssl(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, mentions: Sequence[SpokenMention],
    config: MitigationConfig,
) -> Steering:  # fmt: skip
    """SSL (arXiv 2505.16146): x + γ‖x‖ f_faithful on image tokens, x - γ‖x‖ f_hallucinated on generated ones.

    The features differ most in how often they fire on the tokens of faithful and of hallucinated object words.
    """
    fires_NK = evidence(model, sae, layer, mentions, "textual", config.batch_size, on_word=True) > 0
    score_K = frequency_difference(fires_NK, np.array([not mention.hallucinated for mention in mentions]))
    faithful, hallucinated = int(score_K.argmax()), int(score_K.argmin())

    def under(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
        def along(direction_MD: Tensor, gamma: float, tokens: str, phase: str) -> TokenEdit:
            def push(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
                direction_ND = direction_MD.to(acts_ND)[modality_N.long()]
                return acts_ND + gamma * acts_ND.norm(dim=-1, keepdim=True) * direction_ND

            return TokenEdit(push, tokens, phase)  # type: ignore[arg-type]

        site = model.record_sites(layer)[0].site
        return edits(model, [
            (site, along(_directions(sae, faithful), strength, "visual", "prefill")),
            (site, along(_directions(sae, hallucinated), -strength, "textual", "decode")),
        ])  # fmt: skip

    return Steering("SSL", under, tuple(config.gammas), features=(faithful, hallucinated), signed=True)


def frequency_difference(fires_NK: np.ndarray, good_N: np.ndarray) -> np.ndarray:
    """P(fires | good) - P(fires | bad) of every feature, [K]; with one kind only, its share against nothing."""
    good, bad = (fires_NK[rows].mean(0) if rows.any() else np.zeros(fires_NK.shape[1]) for rows in (good_N, ~good_N))
    return good - bad


def _directions(sae: SparseAutoencoder, feature: int) -> Tensor:
    """[2, D]: the unit direction of a feature in visual and in textual records."""
    found = [sae.directions(modality)[feature] for modality in (Modality.VISUAL, Modality.TEXTUAL)]
    return torch.nn.functional.normalize(torch.stack(found), dim=-1)


@dataclass(frozen=True)
class Projection:
    """What ProjectAway learns from the calibration images.

    Attributes:
        directions: object → [D], mean state of its word's token where captions name it.
        threshold: objects of less internal confidence count as hallucinated.
        auroc: of the confidence, for faithful against hallucinated mentions.
    """

    directions: Mapping[str, Tensor]
    threshold: float
    auroc: float


@torch.no_grad()
def fit_projection(
    model: MultimodalModel, layer: int, mentions: Sequence[SpokenMention], config: MitigationConfig
) -> Projection:
    """Directions of objects, and the confidence that best tells faithful from hallucinated mentions (by F1)."""
    site = model.record_sites(layer)[0].site
    states: dict[str, list[Tensor]] = {}
    confidence = []
    nodes = sorted({mention.node for mention in mentions})
    for start in range(0, len(mentions), config.batch_size):
        some = mentions[start : start + config.batch_size]
        batch = collate_queries(model, some)
        with Trace(model, [site], stop=True) as acts:
            model(**batch)
        column_B = word_columns(batch.answer_mask, some)
        for row, mention in enumerate(some):
            states.setdefault(mention.node, []).append(acts[site][row, column_B[row]])
        confidence_BW = internal_confidence(model, batch, nodes)
        confidence += [float(confidence_BW[row, nodes.index(each.node)]) for row, each in enumerate(some)]
    confidence_N, wrong_N = np.array(confidence), np.array([mention.hallucinated for mention in mentions])
    directions = {node: torch.stack(found).mean(0) for node, found in states.items()}
    area = float(auroc(-confidence_N[:, None], wrong_N[:, None])[0, 0])
    return Projection(directions, -best_threshold(-confidence_N, wrong_N), area)


def project_away(
    model: MultimodalModel, layer: int, found: Projection, vocabulary: Vocabulary, config: MitigationConfig
) -> Steering:
    """ProjectAway (Jiang et al. 2024, arXiv 2410.02762): x - α (x · d / ‖d‖²) d on image tokens, at one layer.

    The model first captions the image; the objects that it names without internal confidence are projected away, one
    after the other, and it writes again.
    """
    site, nodes = model.record_sites(layer)[0].site, sorted(found.directions)
    doubted: dict[str, list[Tensor]] = {}

    def look(samples: Sequence[Sample]) -> None:
        captions = caption_samples(model, samples, config.batch_size, config.max_new_tokens)
        confidence_BW = internal_confidence(model, model.collate(samples), nodes)
        for sample, caption, confidence_W in zip(samples, captions, confidence_BW, strict=True):
            named = {mention.node for mention in vocabulary.mentions(caption)}
            doubted[sample.key] = [
                found.directions[node] for node, value in zip(nodes, confidence_W.tolist(), strict=True)
                if node in named and value <= found.threshold
            ]  # fmt: skip

    def under(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
        if unseen := list({each.key: each for each in samples if each.key not in doubted}.values()):
            look(unseen)
        rows = [doubted[sample.key] for sample in samples]

        def project(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            new_ND = acts_ND.clone()
            for row in where.batch_index.unique().tolist():
                here = where.batch_index == row
                for direction_D in rows[row]:
                    unit_D = torch.nn.functional.normalize(direction_D, dim=0).to(acts_ND)
                    new_ND[here] -= strength * (new_ND[here] @ unit_D)[:, None] * unit_D
            return new_ND

        return Edit(model, site, TokenEdit(project, "visual", "prefill"))

    return Steering("ProjectAway", under, tuple(config.alphas))


def head_ablation(
    model: MultimodalModel, mentions: Sequence[SpokenMention], vocabulary: Vocabulary, config: MitigationConfig
) -> Steering:
    """The attention heads of the language model that speak most for hallucinated words, their output set to zero.

    Heads are ranked by gradient times output, summed over positions; the strength is how many are ablated.
    """
    wrong = [mention for mention in mentions if mention.hallucinated]
    effect_LH = head_attribution(model, wrong, MentionReadout(model, vocabulary), config.batch_size)
    order = np.argsort(effect_LH, axis=None, kind="stable")
    ranked = [divmod(int(index), effect_LH.shape[1]) for index in order]

    def under(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
        chosen: dict[int, list[int]] = {}
        for layer, head in ranked[: int(strength)]:
            chosen.setdefault(layer, []).append(head)
        return edits(model, [
            (_head_site(layer), TokenEdit(_without(heads, effect_LH.shape[1]), "every"))
            for layer, heads in chosen.items()
        ])  # fmt: skip

    return Steering("head ablation", under, tuple(float(count) for count in config.head_counts))


def head_attribution(
    model: MultimodalModel, mentions: Sequence[SpokenMention], readout: MentionReadout, batch_size: int
) -> np.ndarray:
    """Estimated change of the readout when a head is ablated, mean over mentions: float64 [layers, heads]."""
    sites = [_head_site(layer) for layer in range(model.n_layers)]
    n_heads = [model.n_heads(site) for site in sites]
    effect_LH = np.zeros((len(sites), n_heads[0]))
    for batch, some in batches(model, mentions, batch_size):
        outputs: list[Tensor] = []
        probes: list[Tensor] = []

        def probe(acts_ND: Tensor, modality_N: Tensor, where: Where, outputs: list[Tensor] = outputs,
                  probes: list[Tensor] = probes) -> Tensor:
            outputs.append(acts_ND.detach())
            probes.append(torch.zeros_like(acts_ND, requires_grad=True))
            return acts_ND + probes[-1]

        with torch.enable_grad(), edits(model, [(site, TokenEdit(probe, "every", "prefill")) for site in sites]):
            scores_B = readout(batch, some)
        gradients = torch.autograd.grad(scores_B.sum(), probes)
        for layer, (output_NE, gradient_NE) in enumerate(zip(outputs, gradients, strict=True)):
            per_head_NHe = (output_NE * gradient_NE).unflatten(-1, (n_heads[layer], -1))
            effect_LH[layer] -= per_head_NHe.sum(dim=(0, 2)).double().cpu().numpy()
    return effect_LH / max(1, len(mentions))


def _without(heads: Sequence[int], n_heads: int) -> EditFunction:
    def fn(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        heads_NHe = acts_ND.unflatten(-1, (n_heads, -1)).clone()
        heads_NHe[:, heads] = 0
        return heads_NHe.flatten(-2)

    return fn


def _head_site(layer: int) -> str:
    return f"language.layers.{layer}.heads"


def prompting(model: MultimodalModel, config: MitigationConfig) -> Steering | str:
    """Another instruction alone; or, as a text, why the model cannot be given it."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    lost = [word for word in config.prompt.split() if unknown is not None and unknown in model.answer_ids(word)]
    if lost:
        return f"{model.spec.name} does not know the words {', '.join(word.strip('.,') for word in lost)}"
    return Steering("prompt only", prompt=config.prompt)
