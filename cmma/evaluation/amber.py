"""AMBER (Wang et al. 2023, arXiv 2311.07397), by the rules of its released scorer.

*Generative part.* The objects that a description names are its nouns, as lemmas, that stand in AMBER's table of
associated words; capitals are kept, so "Sky" is none. Each is, by the first rule that applies:

1. one of the words that are never counted as wrong: right, and covers nothing;
2. an object that is there, or a word associated with one: right, and that object is covered;
3. a near-synonym of such a word (`Similar`): the same;
4. hallucinated.

What comes to rule 3 and is, or resembles, a *target* (an object that people would expect in the image and that is not
there) hits that target, whatever then becomes of it. Where a word belongs to several objects, the first in the list of
associated words, then in the annotation, has it.

*Discriminative part.* Yes/no questions; positive is "no", and an answer counts only if it is exactly `Yes` or `No`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from nltk import pos_tag, word_tokenize
from nltk.stem import WordNetLemmatizer

from cmma.errors import DataError

Similar = Callable[[str, str], bool]
"""Whether two words are near-synonyms."""

VECTORS = "en_core_web_lg"
THRESHOLD = 0.8  # of the cosine: the released scorer's default
OFFSET = 0.001  # what the released scorer adds to every denominator
_lemmatizer = WordNetLemmatizer()


@dataclass(frozen=True)
class AmberWords:
    """What AMBER knows about words.

    Attributes:
        associated: object → words that may stand for it (the released `relation.json`).
        safe: words that are never counted as wrong (the released `safe_words.txt`).
        similar: the near-synonyms.
    """

    associated: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    similar: Similar

    @cached_property
    def objects(self) -> frozenset[str]:
        """Every word of the table: other nouns are ignored."""
        return frozenset(self.associated).union(*self.associated.values())

    def owners(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """Words that stand for one of the objects `names`, each with the object's index; associated words first."""
        words = [(word, index) for index, name in enumerate(names) for word in self.associated.get(name, ())]
        return words + [(name, index) for index, name in enumerate(names)]


@dataclass(frozen=True)
class Description:
    """One description: the objects that it names, those of them that are hallucinated, and the indices of the objects
    that it covers (of the truth) and hits (of the targets)."""

    named: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    hit: frozenset[int]


def score_description(
    nouns: Iterable[str], truth: Sequence[str], targets: Sequence[str], words: AmberWords
) -> Description:
    """Check the nouns of one description.

    Args:
        nouns: lemmas, in order; repeated ones count each time (`nouns_of`).
        truth, targets: objects that are there, and those that one would expect and that are not.
    """
    there, expected = words.owners(truth), words.owners(targets)
    named = tuple(noun for noun in nouns if noun in words.objects)
    hallucinated: list[str] = []
    covered: set[int] = set()
    hit: set[int] = set()
    for noun in named:
        if noun in words.safe:
            continue
        exact, near = noun.__eq__, lambda word, noun=noun: words.similar(noun, word)
        right = _first(there, exact)
        if right is None:
            hit |= {index for index in (_first(expected, exact), _first(expected, near)) if index is not None}
            right = _first(there, near)
        if right is None:
            hallucinated.append(noun)
        else:
            covered.add(right)
    return Description(named, tuple(hallucinated), frozenset(covered), frozenset(hit))


def _first(words: Sequence[tuple[str, int]], fits: Callable[[str], bool]) -> int | None:
    return next((index for word, index in words if fits(word)), None)


def nouns_of(text: str) -> list[str]:
    """Lemmas of the nouns of a text, by NLTK's tokens, tags and WordNet.

    Raises:
        DataError: NLTK's data are not installed.
    """
    try:
        return [_lemmatizer.lemmatize(word) for word, tag in pos_tag(word_tokenize(text)) if tag.startswith("NN")]
    except LookupError as error:
        raise DataError(
            "AMBER's generative part needs data of NLTK that are not installed; run: "
            "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
        ) from error


def spacy_similarity() -> Similar:
    """Near-synonyms as AMBER has them: cosine of spaCy's word vectors above `THRESHOLD`.

    Raises:
        DataError: spaCy or its vectors are not installed.
    """
    try:
        import spacy

        model = spacy.load(VECTORS)
    except (ImportError, OSError) as error:
        raise DataError(
            f"AMBER's near-synonyms need spaCy and its vectors, which are not installed; run: pip install spacy && "
            f"python -m spacy download {VECTORS}; or do without near-synonyms, under another name: metric.variant=words"
        ) from error
    document = lru_cache(maxsize=None)(model.make_doc)

    @lru_cache(maxsize=100_000)
    def similar(first: str, second: str) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of words without a vector: their similarity is 0
            return bool(document(first).similarity(document(second)) > THRESHOLD)

    return similar


def printed(part: float, whole: float) -> float:
    """Percent as the released scorer prints it: one decimal, `OFFSET` added to the denominator."""
    return round(part / (whole + OFFSET) * 100, 1)


def printed_rest(part: float, whole: float) -> float:
    """100 less the percent, rounded once: the released scorer's Hal, from the descriptions without a fault."""
    return round(100 - part / (whole + OFFSET) * 100, 1)


def printed_f1(precision: float, recall: float, existence: bool) -> float:
    """F1 as the released scorer prints it: of printed percent, with an offset that is larger for existence."""
    p, r = precision / 100, recall / 100
    return round(2 * p * r / (p + r + (1e-3 if existence else 1e-4)) * 100, 1)
