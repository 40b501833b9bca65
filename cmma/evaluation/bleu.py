"""BLEU (Papineni et al. 2002) by sacrebleu, in two definitions whose numbers differ.

    sacrebleu   13a tokens, case kept, exponential smoothing: what sacrebleu prints
    coco        Penn Treebank tokens in lower case without punctuation, no smoothing: what COCO's caption tables hold

Both pool n-grams over the corpus, and take the length of the closest reference for the brevity penalty. COCO's own code
tokenises with Stanford's tool; NLTK's Treebank tokens stand for it here, and differ from it on rare words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nltk.tokenize import NLTKWordTokenizer
from sacrebleu.metrics import BLEU

from cmma.errors import DataError

VARIANTS = ("sacrebleu", "coco")
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", "(", ")", "[", "]"])
_tokenizer = NLTKWordTokenizer()


@dataclass(frozen=True)
class Bleu:
    """BLEU over a corpus, between 0 and 100.

    Attributes:
        bleu: with n-grams up to 4. bleu_1, bleu_2, bleu_3: up to that length.
        brevity_penalty: 1 where the predictions are as long as their closest references.
        n: predictions.
        signature: sacrebleu's own, which names the definition.
    """

    bleu: float
    bleu_1: float
    bleu_2: float
    bleu_3: float
    brevity_penalty: float
    n: int
    signature: str


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], variant: str = "sacrebleu") -> Bleu:
    """BLEU of predictions, each against its own references, of which there may be different numbers.

    Raises:
        DataError: no predictions, or one without a reference.
    """
    if not predictions or not all(references):
        raise DataError("BLEU needs predictions, and for each at least one reference")
    coco = variant == "coco"
    if coco:
        predictions = [_coco_words(text) for text in predictions]
        references = [[_coco_words(text) for text in some] for some in references]
    most = max(map(len, references))
    streams: list[list[Any]] = [
        [some[turn] if turn < len(some) else None for some in references] for turn in range(most)
    ]
    metrics = [
        BLEU(max_ngram_order=order, tokenize="none" if coco else None, smooth_method="none" if coco else "exp")
        for order in (1, 2, 3, 4)
    ]
    one, two, three, four = (metric.corpus_score(predictions, streams) for metric in metrics)
    signature = str(metrics[3].get_signature())
    return Bleu(four.score, one.score, two.score, three.score, four.bp, len(predictions), signature)


def _coco_words(text: str) -> str:
    return " ".join(token for token in _tokenizer.tokenize(text.lower()) if token not in _PUNCTUATION)
