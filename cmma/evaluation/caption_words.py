"""How CHAIR finds object words in a caption: the original's steps, quirks included (Rohrbach et al. 2018).

Lower case → sentences → Treebank tokens → singular (or lemma) → two-word phrases merged from left to right → `seat`
dropped beside `toilet` → words on the list → node words. Two families of published numbers differ in the fourth step:

    pattern   CLiPS pattern's singulariser: the original's and POPE's tables. TextBlob carries the same rules.
    wordnet   NLTK's part-of-speech tags and WordNet's lemmas: OPERA's and lmms-eval's tables.

What the steps do to single words is kept, because published numbers contain it: under `pattern` "bus" becomes "bu" and
is never found, nor are "minibus" and "airbus", and a wine glass is found as "wine glas".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from nltk import pos_tag
from nltk.stem import WordNetLemmatizer
from nltk.tokenize import NLTKWordTokenizer
from textblob.en.inflect import singularize

from cmma.errors import DataError
from cmma.evaluation.vocabulary import Mention, truth_nodes

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
PHRASES: Mapping[str, str] = {
    phrase: phrase
    for phrase in (
        "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light",
        "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove",
        "tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier",
        "potted plant", "laptop computer",
        "home plate", "train track",  # no objects: merged so that their words are none either
    )
} | {
    f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS
} | {
    "passenger jet": "jet", "passenger train": "train", "bow tie": "tie", "toilet seat": "toilet",
    "wine glas": "wine glass",
}  # fmt: skip
"""Two words, as they are after the singular is taken, and what stands for them."""

NEVER_FOUND = frozenset({"motor bike", "cheesecake", "iphone"})
"""Words that the public list misspells for its own reader (a leading space, a capital): published numbers lack them."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+")
_PLAIN_SENTENCE = re.compile(r"(?:[a-z0-9]++(?:-[a-z0-9]++)*+|,(?!\d)| )*+[.!?]?")
_PLAIN_TOKEN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*|[,.!?]")
_PIECE = re.compile(r".{1,1000}(?=\s|$)|\S{1,1000}|\s", re.DOTALL)  # Treebank's rules take quadratic time on quotes
_LONGEST_WORD = 64
_tokenizer = NLTKWordTokenizer()
_lemmatizer = WordNetLemmatizer()
_TAGS = {"J": "a", "V": "v", "N": "n", "R": "r"}

Normalise = Callable[[list[str]], list[str]]
"""Tokens of a caption → as many words in their basic form."""


@dataclass(frozen=True)
class CaptionWords:
    """Object words as the original CHAIR finds them; stands where a `Vocabulary` stands.

    Attributes:
        name: how reports call it.
        node_of: word or phrase, as it is after all steps → node word.
        normalise: the fourth step.
    """

    name: str
    node_of: Mapping[str, str]
    normalise: Normalise

    def mentions(self, caption: str) -> list[Mention]:
        """Every mention in the caption, in order; repeated mentions are repeated."""
        words = merge_phrases(self.normalise(tokenise(caption)))
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [Mention(word, self.node_of[word]) for word in words if word in self.node_of]

    def truth(self, objects: Iterable[str]) -> frozenset[str]:
        """Names of objects in an image as node words. Raises DataError for a name that the list does not know."""
        return truth_nodes(objects, self.node_of, self.name)


def tokenise(caption: str) -> list[str]:
    """Treebank tokens in lower case.

    Treebank splits a full stop off at the end of its text only, so sentences come first, and cutting wherever white
    space follows a mark is enough for the words of the list: an abbreviation that is cut too loses its stop. A sentence
    of plain words needs none of Treebank's rules, which take most of the time.
    """
    tokens: list[str] = []
    for sentence in _SENTENCE_END.split(caption.lower()):
        if _PLAIN_SENTENCE.fullmatch(sentence):
            tokens += _PLAIN_TOKEN.findall(sentence)
        else:
            tokens += [token for piece in _PIECE.findall(sentence) for token in _tokenizer.tokenize(piece)]
    return tokens


def merge_phrases(words: list[str]) -> list[str]:
    """Put what stands for a phrase of `PHRASES` in place of its two words, from left to right."""
    merged, start = [], 0
    while start < len(words):
        phrase = " ".join(words[start : start + 2])
        merged.append(PHRASES.get(phrase, words[start]))
        start += 2 if phrase in PHRASES else 1
    return merged


def singulars(tokens: list[str]) -> list[str]:
    """The singular of every token by CLiPS pattern's rules; tokens longer than any word stay as they are."""
    return [_singular(token) if len(token) <= _LONGEST_WORD else token for token in tokens]


@lru_cache(maxsize=100_000)
def _singular(token: str) -> str:
    return singularize(token)


def lemmas(tokens: list[str]) -> list[str]:
    """WordNet's lemma of every token under its part of speech; a noun where the tag says nothing.

    Raises:
        DataError: NLTK's data are not installed.
    """
    try:
        return [_lemmatizer.lemmatize(token, _TAGS.get(tag[0], "n")) for token, tag in pos_tag(tokens)]
    except LookupError as error:
        raise DataError(
            "metric.normalizer=wordnet needs data of NLTK that are not installed; run: "
            "python -m nltk.downloader averaged_perceptron_tagger_eng wordnet"
        ) from error
