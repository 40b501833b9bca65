"""logit_lens: where among layers and positions the answer can be read, and whether image tokens know what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.curves import by_image, layer_table
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.flows import flow_groups
from cmma.causal.intervening import queries_for
from cmma.causal.logit_lens import image_probabilities, lens_sites, read_lens
from cmma.causal.positions import object_patches
from cmma.causal.queries import Query
from cmma.causal.readout import batches, make_readout
from cmma.causal.tracing import answered_right
from cmma.console import progress
from cmma.data.samples import Sample
from cmma.evaluation.captioning import caption_samples
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY, visible_objects, visible_shapes
from cmma.evaluation.vocabulary import Vocabulary
from cmma.figures import Curves, Figure, HeatMap, Line, Listing
from cmma.models.base import MultimodalModel
from cmma.statistics.auroc import auroc_by_image

READINGS = {"probability": "probability of the right answer", "reciprocal_rank": "1 / rank of the right answer"}
OWN, OTHER = "own patches", "other patches"


@dataclass(frozen=True)
class WordReadings:
    """Lens probabilities of object words at image tokens.

    Attributes:
        words: W.
        keys: images, I.
        confidence_ILW: largest over the image's tokens, by layer.
        present_IW: whether the image shows it.
        mentioned_IW: whether the model's caption names it; None without captions.
        places: layer by layer, mean probability of a present word at the patches that show it and at the others;
            [things, L] each, with the image of each thing. Empty without masks.
        place_keys: those images.
    """

    words: tuple[str, ...]
    keys: tuple[str, ...]
    confidence_ILW: np.ndarray
    present_IW: np.ndarray
    mentioned_IW: np.ndarray | None
    places: Mapping[str, np.ndarray]
    place_keys: tuple[str, ...]


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """The answer by layer × position group; object words by layer, present against absent, true against hallucinated.

    Raises:
        ConfigError: a model that writes no words, or a layer that it does not have.
    """
    options, samples = config.logit_lens, samples[: config.max_samples]
    layers = [int(site.split(".")[-2]) for site in lens_sites(model, config.layers)]
    readout = make_readout(model, "auto", "first_token_probability")
    queries = answered_right(model, queries_for(model, samples), readout, config.correct_only)
    answers = answer_table(model, queries, layers, options.batch_size, config.seed)
    summary: dict[str, Any] = {"method": config.method, "n_total": len(samples), "n_used": len(queries)}
    summary |= decided(answers, layers)
    tables = {"answers": answers}
    drawn = answer_figures(answers, layers)

    vocabulary = _vocabulary(options.words, samples)
    if vocabulary is not None and model.answer_stream == model.streams[0]:
        captions = None
        if options.captions and model.captions:
            captions = caption_samples(model, samples, max_new_tokens=options.max_new_tokens)
        read = read_words(model, samples, vocabulary, layers, captions, options.batch_size)
        detection = detection_table(read, layers, config.seed)
        tables |= {"words": word_table(read), "detection": detection}
        drawn += word_figures(read, detection, layers, config.seed)
        for row in detection[detection["layer"] == "max"].to_dict("records"):
            if row["things"] in ("all words", "mentioned words"):
                name = f"auroc_{row['things'].split()[0]}"
                summary |= {name: row["auroc"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return Findings(summary=summary, tables=tables, figures=drawn)


# --- the answer -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answer_table(
    model: MultimodalModel, queries: Sequence[Query], layers: Sequence[int], batch_size: int, seed: int = 0
) -> pd.DataFrame:
    """Probability and reciprocal rank of the right answer's first token, averaged over the positions of each group.

    Columns: reading, group, layer, n, value with its interval.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    keys: list[str] = []
    stream = model.answer_stream
    with progress("Reading the answer", total=len(queries)) as bar:
        for batch, some in batches(model, queries, batch_size):
            tokens_B1 = torch.tensor([[model.answer_ids(query.answer)[0]] for query in some], device=model.device)
            lens = read_lens(model, batch, tokens_B1, layers)
            readings = {
                "probability": lens.probability_BLSW[..., 0].double(),
                "reciprocal_rank": 1 / (1 + lens.rank_BLSW[..., 0].double()),
            }
            length = lens.rank_BLSW.shape[2]
            groups = flow_groups(model, batch, [query.sample for query in some], {stream: length})[stream]
            for name, value_BLS in readings.items():
                for group, member_BS in groups.items():
                    mean_BL = (value_BLS * member_BS[:, None]).sum(dim=2) / member_BS.sum(dim=1, keepdim=True)
                    found.setdefault((name, group), []).append(mean_BL.cpu().numpy())
            keys += [query.key for query in some]
            bar.advance(len(some))
    tables = []
    for (name, group), parts in found.items():
        value_IL, _ = by_image(np.concatenate(parts), keys)  # leaves out the images without such positions
        tables.append(layer_table(value_IL, layers, seed=seed).assign(reading=name, group=group).drop(columns="p"))
    return pd.concat(tables, ignore_index=True)


def decided(answers: pd.DataFrame, layers: Sequence[int]) -> dict[str, Any]:
    """Where the answer is written: its probability after the last layer, and the first layer with half of that."""
    at = answers[(answers["reading"] == "probability") & answers["group"].isin(("last", "start"))]
    value_L = at["value"].to_numpy()
    half = int(np.argmax(value_L >= value_L[-1] / 2))
    return {"answer_probability": float(value_L[-1]), "half_at_layer": layers[half]}


def answer_figures(answers: pd.DataFrame, layers: Sequence[int]) -> tuple[Figure, ...]:
    """A map of the probability over layers × groups, and curves of the reciprocal rank."""
    groups = list(dict.fromkeys(answers["group"]))
    at = answers[answers["reading"] == "probability"]

    def grid(column: str) -> np.ndarray:
        return at.pivot(index="layer", columns="group", values=column).loc[list(layers), groups].to_numpy(float)

    n = int(answers["n"].max())
    heat = HeatMap(
        title="logit lens: the right answer", about=READINGS["probability"], value_RC=grid("value"),
        low_RC=grid("value_low"), high_RC=grid("value_high"), rows=[str(layer) for layer in layers], columns=groups,
        n=n,
    )  # fmt: skip
    ranks = answers[answers["reading"] == "reciprocal_rank"]
    lines = [_line(group, ranks[ranks["group"] == group]) for group in groups]
    about = READINGS["reciprocal_rank"]
    return heat, Curves("logit lens: rank of the right answer", about, "layer", list(layers), lines, n=n)


# --- object words -----------------------------------------------------------------------------------------------------


def read_words(
    model: MultimodalModel, samples: Sequence[Sample], vocabulary: Vocabulary, layers: Sequence[int],
    captions: Sequence[str] | None, batch_size: int,
) -> WordReadings:  # fmt: skip
    """Confidence of every object word in every image. Image tokens come before the text: any prompt reads the same."""
    words = vocabulary.nodes
    confidence, own, other, place_keys = [], [], [], []
    grid = model.image_grid({})
    with progress("Reading image tokens", total=len(samples)) as bar:
        for start in range(0, len(samples), batch_size):
            some = samples[start : start + batch_size]
            batch = model.collate(some)
            probability_BLSW, _ = image_probabilities(model, batch, words, layers)
            confidence.append(probability_BLSW.amax(dim=2).cpu().numpy())
            for row, (sample, at_P) in enumerate(zip(some, model.image_positions(batch), strict=True)):
                for word, shown_P in _shown(sample, words, grid).items():
                    probability_LP = probability_BLSW[row, :, at_P, words.index(word)].cpu().numpy()
                    own.append(probability_LP[:, shown_P].mean(axis=1))
                    other.append(probability_LP[:, ~shown_P].mean(axis=1))
                    place_keys.append(sample.key)
            bar.advance(len(some))
    present_IW = np.array([[word in _present(sample) for word in words] for sample in samples])
    mentioned_IW = None
    if captions is not None:
        named = [{mention.node for mention in vocabulary.mentions(caption)} for caption in captions]
        mentioned_IW = np.array([[word in nodes for word in words] for nodes in named])
    places = {OWN: np.array(own), OTHER: np.array(other)} if own else {}
    return WordReadings(
        tuple(words), tuple(sample.key for sample in samples), np.concatenate(confidence), present_IW, mentioned_IW,
        places, tuple(place_keys),
    )  # fmt: skip


def _vocabulary(words: Sequence[str], samples: Sequence[Sample]) -> Vocabulary | None:
    """The words that are asked for, else the shape words; None where no objects are known."""
    if words:
        return Vocabulary("words", {word: word for word in words})
    return SHAPES_VOCABULARY if any(sample.objects for sample in samples) else None


def _present(sample: Sample) -> set[str]:
    """What the image shows: the shapes of its objects, or its labels where objects are not known."""
    return set(visible_shapes(sample)) if sample.objects else set(sample.labels)


def _shown(sample: Sample, words: Sequence[str], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Present word → bool [P], the patches that show such an object; words that fill the image have no others."""
    if sample.mask is None:
        return {}
    found = {}
    for word in words:
        own = [index for index, thing in visible_objects(sample).items() if thing["shape"] == word]
        shown_P = object_patches(sample, own, grid)
        if shown_P.any() and not shown_P.all():
            found[word] = shown_P
    return found


def detection_table(read: WordReadings, layers: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """How well confidence tells present words from absent ones: things, layer, true, false, auroc, low, high.

    `all words` of the list in every image, each word by itself, and `mentioned words`: those that the caption names,
    true against hallucinated ones. Layer "max" is the internal confidence.
    """
    chosen = {"all words": np.ones_like(read.present_IW)}
    if read.mentioned_IW is not None:
        chosen["mentioned words"] = read.mentioned_IW
    chosen |= {word: np.arange(len(read.words)) == np.full_like(read.present_IW, at, dtype=int)
               for at, word in enumerate(read.words)}
    key_IW = np.repeat(np.asarray(read.keys, dtype=object)[:, None], len(read.words), axis=1)
    rows = []
    for things, own_IW in chosen.items():
        scores = {"max": read.confidence_ILW.max(axis=1)}
        if things not in read.words:
            scores |= {str(layer): read.confidence_ILW[:, at] for at, layer in enumerate(layers)}
        truth = read.present_IW[own_IW]
        for layer, score_IW in scores.items():
            found = auroc_by_image(score_IW[own_IW], truth, key_IW[own_IW].tolist(), seed=seed)
            rows.append({
                "things": things, "layer": layer, "true": int(truth.sum()), "false": int((~truth).sum()),
                "auroc": found.value, "low": found.low, "high": found.high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def word_table(read: WordReadings) -> pd.DataFrame:
    """Every confidence, long: key, word, present, mentioned, confidence."""
    n_images, n_words = read.present_IW.shape
    mentioned = [None] * read.present_IW.size if read.mentioned_IW is None else read.mentioned_IW.flatten().tolist()
    return pd.DataFrame({
        "key": np.repeat(np.asarray(read.keys, dtype=object), n_words), "word": list(read.words) * n_images,
        "present": read.present_IW.flatten(), "mentioned": pd.array(mentioned, dtype="boolean"),
        "confidence": read.confidence_ILW.max(axis=1).flatten(),
    })  # fmt: skip


def word_figures(
    read: WordReadings, detection: pd.DataFrame, layers: Sequence[int], seed: int = 0
) -> tuple[Figure, ...]:
    """Detection by layer, a present word at its own patches against the others, and the numbers of detection."""
    by_layer = detection[detection["layer"] != "max"]
    drawn: list[Figure] = [Curves(
        title="image tokens tell present objects from absent ones", about="AUROC of the largest lens probability",
        x_label="layer", x=list(layers), n=len(read.keys),
        lines=[Line(str(things), rows["auroc"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy())
               for things, rows in by_layer.groupby("things", sort=False)],
    )]  # fmt: skip
    if read.places:
        lines = []
        for name, value_NL in read.places.items():
            value_IL, images = by_image(value_NL, read.place_keys)
            lines.append(_line(name, layer_table(value_IL, layers, seed=seed)))
        drawn.append(Curves(
            "where a present object is read", "probability of its word", "layer", list(layers), lines, n=len(images)))
    listed = detection[detection["layer"] == "max"].drop(columns="layer")
    drawn.append(Listing(
        title="internal confidence: present against absent",
        about="AUROC with 95% CI over images; mentioned words: true against hallucinated",
        columns=list(listed.columns), rows=listed.astype(object).where(listed.notna(), None).to_numpy().tolist(),
    ))  # fmt: skip
    return tuple(drawn)


def _line(name: str, rows: pd.DataFrame) -> Line:
    return Line(name, *(rows[column].to_numpy() for column in ("value", "value_low", "value_high")))
