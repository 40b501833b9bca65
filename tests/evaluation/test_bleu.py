"""BLEU against sacrebleu's own function, and COCO's definition by explicit counts."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import sacrebleu

from cmma.errors import DataError
from cmma.evaluation.bleu import bleu

SAID = ["A dog runs in the park, fast.", "Two men ride the bikes on a street."]
REFERENCES = [
    ["A brown dog runs in the park.", "The dog is running fast in a park."], ["Two men ride bikes on a road."]
]  # fmt: skip


def test_equals_sacrebleu_with_different_numbers_of_references():
    theirs = sacrebleu.corpus_bleu(SAID, [["A brown dog runs in the park.", "Two men ride bikes on a road."],
                                          ["The dog is running fast in a park.", None]])
    ours = bleu(SAID, REFERENCES)
    assert ours.bleu == pytest.approx(theirs.score)
    assert ours.brevity_penalty == theirs.bp
    assert "tok:13a" in ours.signature


def test_coco_definition_by_counts():
    """Lower case, no punctuation, clipped counts pooled over the corpus, closest reference length."""
    said = [text.lower().replace(",", "").replace(".", "").split() for text in SAID]
    references = [[text.lower().replace(".", "").split() for text in some] for some in REFERENCES]

    def grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(zip(*(words[start:] for start in range(n)), strict=False))

    def precision(n: int) -> float:
        right = total = 0
        for words, some in zip(said, references, strict=True):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in some:
                most |= grams(reference, n)
            right += (grams(words, n) & most).total()
            total += grams(words, n).total()
        return right / total

    closest = sum(
        min((abs(len(reference) - len(words)), len(reference)) for reference in some)[1]
        for words, some in zip(said, references, strict=True)
    )
    length = sum(map(len, said))
    penalty = 1 if length >= closest else math.exp(1 - closest / length)
    ours = bleu(SAID, REFERENCES, "coco")
    for n, value in ((1, ours.bleu_1), (2, ours.bleu_2), (3, ours.bleu_3), (4, ours.bleu)):
        expected = penalty * math.prod(precision(k) for k in range(1, n + 1)) ** (1 / n)
        assert value == pytest.approx(100 * expected)
    assert ours.bleu != pytest.approx(bleu(SAID, REFERENCES).bleu, abs=0.5)  # the two do not compare


def test_a_prediction_without_reference_is_refused():
    with pytest.raises(DataError, match="at least one reference"):
        bleu(SAID, [["a dog"], []])
