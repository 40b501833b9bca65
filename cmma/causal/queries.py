"""What is asked of a model about one image, and the contrasts that causal tracing lives on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cmma.data.samples import Sample
from cmma.errors import DataError


@dataclass(frozen=True)
class Query:
    """One text for one image, with the answer that the readout measures.

    Attributes:
        sample: the image and what is known about it; its key is the unit that statistics resample.
        text: the question; for a dual encoder, the caption.
        answer: the right answer; empty for a dual encoder.
        other: the answer to hold against it (logit difference), empty where there is none.
    """

    sample: Sample
    text: str
    answer: str = ""
    other: str = ""

    @property
    def key(self) -> str:
        """Key of the image."""
        return self.sample.key

    @property
    def kind(self) -> str:
        """Kind of the question; "caption" where the text is none of the sample's questions."""
        return next((each.kind for each in self.sample.questions if each.question == self.text), "caption")

    @property
    def identities(self) -> set[str]:
        """Names under which the image may come back elsewhere: its key, and its pair."""
        pair = self.sample.meta.get("pair")
        return {self.key} if pair is None else {self.key, f"pair {pair['id']}"}


@dataclass(frozen=True)
class Contrast:
    """A clean and a corrupt query: same readout, another input."""

    clean: Query
    corrupt: Query


def question_queries(
    samples: Iterable[Sample], kinds: Sequence[str] = (), per_sample: int | None = None
) -> list[Query]:
    """The samples' questions, in their order.

    Args:
        kinds: kinds of question to keep; empty keeps all.
        per_sample: at most so many of one sample, taken round-robin over kinds so that samples do not all
            contribute the same kind.
    """
    queries = []
    for turn, sample in enumerate(samples):
        chosen = [question for question in sample.questions if not kinds or question.kind in kinds]
        if per_sample is not None and chosen:
            chosen = [chosen[(turn + step) % len(chosen)] for step in range(min(per_sample, len(chosen)))]
        queries += [Query(sample, question.question, question.answer) for question in chosen]
    return queries


def caption_queries(samples: Iterable[Sample]) -> list[Query]:
    """Each sample with its own caption, for models that answer no questions."""
    return [Query(sample, sample.caption) for sample in samples]


def image_pair_contrasts(samples: Iterable[Sample]) -> list[Contrast]:
    """Semantic image pairs (NOTICE): the same question, the pair's other image as corruption.

    Samples without a pair, and pairs of which only one image is here, are left out.
    """
    roles: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        pair = sample.meta.get("pair")
        if pair is not None:
            roles.setdefault(str(pair["id"]), {})[pair["role"]] = sample
    contrasts = []
    for both in roles.values():
        if set(both) == {"clean", "corrupt"}:
            pair = both["clean"].meta["pair"]
            clean = Query(both["clean"], pair["question"], pair["answer"], pair["other_answer"])
            contrasts.append(Contrast(clean, replace(clean, sample=both["corrupt"])))
    return _some(contrasts, "semantic_pair", "samples with meta['pair'] in both roles")


def replacement_contrasts(samples: Iterable[Sample], kind: str = "pair") -> list[Contrast]:
    """Symmetric token replacement (NOTICE): the same image, the replaced question as corruption.

    Args:
        kind: `pair` takes the question of a semantic image pair; another name takes that counterfactual set
            (`meta["counterfactuals"][kind]`).
    """
    contrasts = []
    for sample in samples:
        asked = sample.meta.get("pair") if kind == "pair" else sample.meta.get("counterfactuals", {}).get(kind)
        if asked is not None and asked.get("role", "clean") == "clean" and asked.get("replacement"):
            instead = asked["replacement"]
            clean = Query(sample, asked["question"], asked["answer"], instead["answer"])
            contrasts.append(Contrast(clean, replace(clean, text=instead["question"])))
    needed = "meta['pair']['replacement']" if kind == "pair" else f"meta['counterfactuals']['{kind}']"
    return _some(contrasts, "token_replacement", f"samples with {needed}")


def caption_pair_contrasts(samples: Iterable[Sample]) -> list[Contrast]:
    """Semantic image pairs for dual encoders: the clean image's caption, the pair's other image as corruption."""
    contrasts = image_pair_contrasts(samples)
    return [
        Contrast(Query(each.clean.sample, caption), Query(each.corrupt.sample, caption))
        for each in contrasts
        for caption in [each.clean.sample.caption]
    ]


def caption_replacement_contrasts(samples: Iterable[Sample], tokens: Callable[[str], int]) -> list[Contrast]:
    """Symmetric replacement for models without questions: the same image, the caption of its pair's other image.

    Args:
        tokens: number of tokens of a text. Pairs whose captions differ in it are left out: a position of one text must
            be a position of the other.
    """
    swapped = [
        Contrast(clean, replace(clean, text=each.corrupt.sample.caption))
        for each in image_pair_contrasts(samples)
        for clean in [Query(each.clean.sample, each.clean.sample.caption)]
    ]
    equal = [each for each in swapped if tokens(each.clean.text) == tokens(each.corrupt.text) != 0]
    different = [each for each in equal if each.clean.text != each.corrupt.text]
    return _some(different, "token_replacement", "pairs of images whose captions have equally many tokens")


def assert_disjoint(selection: Sequence[Query], effect: Sequence[Query]) -> None:
    """No image, and no pair, both chooses features and measures their effect.

    Raises:
        DataError: naming a few of the images that are on both sides.
    """
    chosen, measured = (set().union(*(query.identities for query in queries)) for queries in (selection, effect))
    shared = chosen & measured
    if shared:
        names = ", ".join(sorted(shared)[:3])
        raise DataError(
            f"{len(shared)} images are used both for selecting features and for measuring their effect ({names}); "
            "give two disjoint sets of samples"
        )


def _some(contrasts: list[Contrast], method: str, needed: str) -> list[Contrast]:
    if not contrasts:
        raise DataError(f"trace={method} needs {needed}; there are none (take a split of pairs, or trace=noise)")
    return contrasts
