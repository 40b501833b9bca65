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
from typing import NamedTuple

from cmma.errors import DataError

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Mention(NamedTuple):
    """One mention of an object: the words of the caption, and the node word they stand for."""

    word: str
    node: str


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
        nodes = set()
        for name in objects:
            if name.lower() not in self.node_of:
                raise DataError(f"object {name!r} of the ground truth is not in the vocabulary {self.name}")
            nodes.add(self.node_of[name.lower()])
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
    table: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: vocabulary cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        content = line.split("#", 1)[0].strip()
        if content:
            node, colon, words = content.partition(":")
            if not colon or not node.strip():
                raise DataError(f"{path} line {number}: expected 'node word: word, word, …', found {content[:60]!r}")
            table.setdefault(node.strip(), []).extend(word for word in words.split(",") if word.strip())
    if not table:
        raise DataError(f"{path}: vocabulary without a single object")
    return make_vocabulary(path.stem, table)
