"""factor_swap: put what one image of a semantic pair shows of the changed object into the run of the other image.

The two images of a pair differ in one factor of one object, and the shapes world knows the answer to every question
about either. Of the questions that both images allow, those with another answer on the other image should take that
answer over when the object's patches are replaced, and the others should keep theirs: interchange intervention
accuracy (Geiger et al. 2021), layer by layer. The control replaces as many patches that do not show the object.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.causal.config import TraceConfig
from cmma.causal.corruptions import contrast_runs
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.modules import HEADS, trace_rows
from cmma.causal.patching import Positions, Run, activation_patch
from cmma.causal.positions import position_groups
from cmma.causal.queries import Contrast, Query, image_pair_contrasts
from cmma.causal.readout import AnswerReadout
from cmma.causal.result import PatchResult
from cmma.causal.tracing import correct_queries
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.figures import Curves, Figure, Line, Listing
from cmma.models.base import Batch, MultimodalModel
from cmma.statistics.bootstrap import bootstrap_mean
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p
from cmma.testbed.language import all_questions
from cmma.testbed.scenes import scenes_of

OBJECT, ELSEWHERE = "changed object", "elsewhere"
FLIPPED, DISTURBED = "takes the other answer", "changes its answer"
"""What is counted of questions whose answer differs between the images, and of those whose answer does not."""


class Asked(NamedTuple):
    """One question about both images of a pair, right answers on the one that is run and on the other."""

    pair: Contrast
    question: str
    kind: str
    answer: str
    other: str

    @property
    def differs(self) -> bool:
        """Whether the other image has another answer."""
        return self.answer != self.other


class _Says(AnswerReadout):
    """1 where the likeliest first word begins the query's other answer, else 0."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model, "share of answers")

    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        logits_BCV, _, answer_BC = self.answer_logits(batch, queries)
        first_B = answer_BC.int().argmax(dim=1)
        said_B = logits_BCV[torch.arange(len(queries), device=first_B.device), first_B].argmax(dim=1)
        wanted_B = torch.tensor([self.model.answer_ids(query.other)[0] for query in queries], device=said_B.device)
        return (said_B == wanted_B).double()


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Shares of answers that flip, and of answers that should not and do, by layer and factor.

    Raises:
        ConfigError: a model that answers no questions, a stream without the image, or single heads.
        DataError: samples without pairs, or whose objects are not known; none answered right on both images.
    """
    stream = config.stream or ("vision" if "vision" in model.streams else model.streams[0])
    if model.kind != "generative":
        raise ConfigError(f"trace.method=factor_swap asks questions, and {model.spec.name} answers none")
    if config.module in HEADS or stream in ("text", "decoder"):
        raise ConfigError("trace.method=factor_swap replaces image patches of whole layers; take another trace.module "
                          "than head and cross_head, and a trace.stream that holds the image")  # fmt: skip
    rows = trace_rows(model, stream, config)
    asked = list(_questions(image_pair_contrasts(samples)[: config.max_samples], config))
    asked = _answered_right(model, asked)
    runs = [contrast_runs(model, Contrast(_query(each, of_other=True), _query(each))) for each in asked]
    groups = [_groups(model, *both, stream, config.seed) for both in runs]
    result = activation_patch(
        model, [other for other, _ in runs], [own for _, own in runs], rows, groups, _Says(model),
        rows_per_forward=config.rows_per_forward,
    )  # fmt: skip
    answers = _answers(result, asked)
    cells = _cells(answers, config.seed)
    return Findings(
        summary={
            "method": config.method, "module": config.module, "stream": stream,
            "pairs": len({each.pair.clean.key for each in asked}),
            "questions": {name: sum(each.differs == differs for each in asked)
                          for name, differs in (("other answer", True), ("same answer", False))},
            "best": _best(cells),
        },
        tables={"cells": cells, "answers": answers},
        figures=(*_curves(cells, list(rows)), _by_factor(cells)),
    )  # fmt: skip


def _questions(pairs: Sequence[Contrast], config: TraceConfig) -> Iterator[Asked]:
    """For each pair, questions that both images allow: some whose answers differ, some whose answers agree.

    One kind after another in turn, so that a pair's questions are about different things.
    """
    for pair in pairs:
        samples = [pair.clean.sample, pair.corrupt.sample]
        if not all(sample.objects and sample.mask is not None for sample in samples):
            raise DataError(f"sample {samples[0].key!r}: factor_swap needs to know the objects and where they are; "
                            "take dataset=shapes")  # fmt: skip
        scenes = scenes_of([sample.objects for sample in samples], [0, 0])
        here, there = ({
            question.question: question
            for groups in all_questions(scenes.scene(row)).values() for some in groups.values() for question in some
        } for row in range(2))  # fmt: skip
        rng = random.Random(f"{config.seed}/{pair.clean.key}")
        shared = [Asked(pair, text, here[text].kind, here[text].answer, there[text].answer)
                  for text in here if text in there]  # fmt: skip
        for differs, n in ((True, config.factor_swap.differing), (False, config.factor_swap.agreeing)):
            yield from _in_turn([each for each in shared if each.differs == differs], n, rng)


def _in_turn(questions: Sequence[Asked], n: int, rng: random.Random) -> list[Asked]:
    """`n` of the questions at random, kinds in turn."""
    of_kind: dict[str, list[Asked]] = defaultdict(list)
    for each in rng.sample(list(questions), len(questions)):
        of_kind[each.kind].append(each)
    place = {each.question: (turn, kind) for kind, some in of_kind.items() for turn, each in enumerate(some)}
    return sorted(questions, key=lambda each: place[each.question])[:n]


def _query(asked: Asked, of_other: bool = False) -> Query:
    """The question on one of the images; both are read out at the same answer."""
    sample = (asked.pair.corrupt if of_other else asked.pair.clean).sample
    return Query(sample, asked.question, asked.answer, asked.other)


def _answered_right(model: MultimodalModel, asked: Sequence[Asked]) -> list[Asked]:
    """Questions that the model answers right on both images."""
    reader = AnswerReadout(model, "probability")
    own = correct_queries(model, [_query(each) for each in asked], reader)
    other = correct_queries(
        model, [Query(each.pair.corrupt.sample, each.question, each.other) for each in asked], reader)
    kept = [each for each, *right in zip(asked, own, other, strict=True) if all(right)]
    # Two answers that begin with one token could not be told apart by the first word.
    first: Any = model.answer_ids
    kept = [each for each in kept if each.differs == (first(each.answer)[0] != first(each.other)[0])]
    if not kept:
        raise DataError(f"{model.spec.name} answers none of {len(asked)} questions right on both images of its pair, "
                        "so there is no answer that could flip")  # fmt: skip
    return kept


def _groups(model: MultimodalModel, other: Run, own: Run, stream: str, seed: int) -> Positions:
    """The patches of what differs, and as many others, drawn at random (all of them where there are fewer)."""
    found = position_groups(model, own, other, stream, "objects", "none")
    rest = torch.cat([where for name, where in found.items()
                      if where is not None and name in ("other objects", "background")])  # fmt: skip
    patches = found[OBJECT]
    assert patches is not None
    rng = np.random.default_rng([seed, len(rest), *own.query.key.encode()])
    chosen = rng.permutation(len(rest))[: len(patches)]
    return {OBJECT: patches, ELSEWHERE: rest[torch.as_tensor(np.sort(chosen))]}


def _answers(result: PatchResult, asked: Sequence[Asked]) -> pd.DataFrame:
    """One row per question, layer and group: `value` is 1 where it takes the other answer, or leaves a common one."""
    parts = []
    for index, each in enumerate(asked):
        score_RG = result.score_CRG[index]
        for group, name in enumerate(result.groups):
            parts.append(pd.DataFrame({
                "image": each.pair.clean.key, "factor": each.pair.clean.sample.meta["pair"]["factor"],
                "question": each.question, "kind": each.kind, "group": name, "row": result.rows,
                "counted": FLIPPED if each.differs else DISTURBED,
                "value": score_RG[:, group] if each.differs else 1 - score_RG[:, group],
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _cells(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean over images (of the means over their questions), with BCa interval, by factor and over all.

    `p` of the changed object: paired sign flips against the other patches, over images; `q` by Benjamini–Hochberg.
    """
    everything = pd.concat([answers.assign(factor="all"), answers], ignore_index=True)
    found = []
    for place, some in everything.groupby(["counted", "factor", "row"], sort=False):
        by_image = some.pivot_table(index="image", columns="group", values="value", sort=False)
        p = float(sign_flip_p((by_image[OBJECT] - by_image[ELSEWHERE]).to_numpy(), seed=seed))
        for group in (OBJECT, ELSEWHERE):
            interval = bootstrap_mean(by_image[group].to_numpy(), seed=seed)
            found.append((*place, group, interval.value, interval.low, interval.high, len(by_image),
                          p if group == OBJECT else np.nan))  # fmt: skip
    cells = pd.DataFrame(found, columns=["counted", "factor", "row", "group", "value", "low", "high", "n", "p"])
    tested = cells["p"].notna()
    cells.loc[tested, "q"] = benjamini_hochberg(cells.loc[tested, "p"].to_numpy())
    return cells


def _best(cells: pd.DataFrame) -> dict[str, object]:
    """The layer of the largest share of flips, with what the same replacement disturbs."""
    own = cells[(cells["factor"] == "all") & (cells["group"] == OBJECT)].set_index(["counted", "row"])
    row = own.loc[FLIPPED]["value"].idxmax()
    found: dict[str, object] = {"row": row}
    for name, counted in (("flipped", FLIPPED), ("disturbed", DISTURBED)):
        if (counted, row) in own.index:
            cell = own.loc[(counted, row)]
            found |= {f"{name}_{column}": float(cell[column]) if np.isfinite(cell[column]) else None
                      for column in ("value", "low", "high", "p")}  # fmt: skip
    return found


def _curves(cells: pd.DataFrame, rows: Sequence[str]) -> list[Figure]:
    """Shares by layer, of both kinds of question and both groups of patches."""
    everything = cells[cells["factor"] == "all"]
    lines = []
    for (counted, group), at in everything.groupby(["counted", "group"], sort=False):
        at = at.set_index("row").loc[list(rows)]
        lines.append(Line(f"{counted}, {group} replaced", *(at[name].to_numpy() for name in ("value", "low", "high"))))
    return [Curves(
        title="one factor's patches from the other image", about="share of questions", x_label="layer",
        x=list(range(len(rows))), lines=lines, n=int(everything["n"].max()),
    )]  # fmt: skip


def _by_factor(cells: pd.DataFrame) -> Listing:
    """Each factor at the layer that is best over all."""
    at = cells[cells["row"] == _best(cells)["row"]]
    names = ["factor", "counted", "group", "value", "low", "high", "n", "p", "q"]
    return Listing(
        title="by factor", about=f"share of questions, {at['row'].iloc[0]} replaced; mean over images, 95% BCa",
        columns=names, rows=at[names].astype(object).where(at[names].notna(), None).to_numpy().tolist(),
    )  # fmt: skip
