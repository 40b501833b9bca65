"""Which words of a caption name which objects: the table behind CHAIR.

A table is a text file, one object per line: the node word, a colon, and every word or phrase that counts as a mention
of it, plurals included; `#` starts a comment. The node word itself always counts.

    dining table: table, tables, dining tables
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from cmma.errors import DataError

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


COCO_OBJECTS = Path(__file__).with_name("coco_objects.txt")
"""The table of COCO's 80 categories."""


class Mention(NamedTuple):
    """One mention of an object: the words of the caption, and the node word they stand for."""

    word: str
    node: str


class ObjectWords(Protocol):
    """What CHAIR needs to know about words: `Vocabulary`, or `cmma.evaluation.caption_words.CaptionWords`."""

    @property
    def name(self) -> str:
        """How reports call it."""

    def mentions(self, caption: str) -> list[Mention]:
        """Every mention in the caption, in order; repeated mentions are repeated."""

    def truth(self, objects: Iterable[str]) -> frozenset[str]:
        """Names of objects in an image as node words. Raises DataError for a name that is not known."""


@dataclass(frozen=True)
class Vocabulary:
    """Words and phrases that name objects.

    Phrases win over the words inside them ("hot dog" is no dog), from left to right, each word used once.

    Attributes:
        name: how reports call the table.
        node_of: lower-case word or phrase → node word.
    """

    name: str
    node_of: Mapping[str, str]
    _longest: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_longest", max((phrase.count(" ") + 1 for phrase in self.node_of), default=0))

    @property
    def nodes(self) -> list[str]:
        """The node words, each once, in table order."""
        return list(dict.fromkeys(self.node_of.values()))

    def mentions(self, caption: str) -> list[Mention]:
        """Every mention in the caption, in order; repeated mentions are repeated."""
        return list(self.located(caption).values())

    def located(self, caption: str) -> dict[tuple[int, int], Mention]:
        """The same, each with the characters of the caption where it begins and ends."""
        words = list(_WORD.finditer(caption.lower()))
        found, start = {}, 0
        while start < len(words):
            for length in range(min(self._longest, len(words) - start), 0, -1):
                part = words[start : start + length]
                phrase = " ".join(word[0] for word in part)
                if phrase in self.node_of:
                    found[part[0].start(), part[-1].end()] = Mention(phrase, self.node_of[phrase])
                    start += length
                    break
            else:
                start += 1
        return found

    def truth(self, objects: Iterable[str]) -> frozenset[str]:
        """Names of objects in an image as node words. Raises DataError for a name that the table does not know."""
        return truth_nodes(objects, self.node_of, self.name)


def truth_nodes(objects: Iterable[str], node_of: Mapping[str, str], vocabulary: str) -> frozenset[str]:
    """Names of objects as node words. Raises DataError for a name that the table does not know."""
    nodes = set()
    for name in objects:
        if name.lower() not in node_of:
            raise DataError(f"object {name!r} of the ground truth is not in the vocabulary {vocabulary}")
        nodes.add(node_of[name.lower()])
    return frozenset(nodes)


def make_vocabulary(name: str, table: Mapping[str, Iterable[str]]) -> Vocabulary:
    """A vocabulary from node word → further words. Raises DataError if one word stands for two nodes."""
    node_of: dict[str, str] = {}
    for node, words in table.items():
        for word in (node, *words):
            phrase = " ".join(_WORD.findall(word.lower()))
            if node_of.setdefault(phrase, node) != node:
                raise DataError(f"vocabulary {name}: {phrase!r} stands for both {node_of[phrase]!r} and {node!r}")
    return Vocabulary(name, node_of)


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a table. Raises DataError naming the line that cannot be used."""
    return make_vocabulary(path.stem, read_table(path))


def read_table(path: Path) -> dict[str, list[str]]:
    """A table as node word → words. Raises DataError naming the line that cannot be used."""
    table: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(path), start=1):
        content = line.split("#", 1)[0].strip()
        if content:
            node, colon, words = content.partition(":")
            if not colon or not node.strip():
                raise DataError(f"{path} line {number}: expected 'node word: word, word, …', found {content[:60]!r}")
            table.setdefault(node.strip(), []).extend(word.strip() for word in words.split(",") if word.strip())
    if not table:
        raise DataError(f"{path}: vocabulary without a single object")
    return table


def read_public_list(path: Path) -> dict[str, list[str]]:
    """The public CHAIR file as node word → words, exactly as its own reader takes them, stray spaces included.

    One object per line, words separated by a comma and a space, the first of them the node word.
    """
    rows = [line.strip().split(", ") for line in _lines(path) if line.strip()]
    if not rows:
        raise DataError(f"{path}: vocabulary without a single object")
    return {words[0]: words for words in rows}


def is_public_list(path: Path) -> bool:
    """Whether a word list has the public file's format: no line has a colon."""
    return not any(":" in line.split("#", 1)[0] for line in _lines(path))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: vocabulary cannot be read ({error})") from error
