"""How near texts are to the right ones: exact match and token-level F1 after SQuAD's normalisation (Rajpurkar et al. 2016, section 6.1),
with intervals. Knows texts only.

Dimensions: N rows, R resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fewtune.errors import DataError
from fewtune.tasks.metrics import Array, Interval, Measures, bootstrap, wilson

METRICS = ("exact_match", "f1")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and white space that is too much.

    >>> normalised(" The Eiffel  Tower, Paris.")
    'eiffel tower paris'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def exact_match(right: str, answer: str) -> float:
    """1 where both are the same when normalised, else 0."""
    return float(normalised(right) == normalised(answer))


def f1(right: str, answer: str) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as both have it.

    Where either has no word it is 1 if neither has one, else 0.

    >>> f1("in the year 1889", "1889 in Paris")
    0.6666666666666666
    """
    words = Counter(normalised(right).split()), Counter(normalised(answer).split())
    if not all(words):
        return float(words[0] == words[1])
    common = (words[0] & words[1]).total()
    return 2 * common / (words[0].total() + words[1].total())


def measure(right: Sequence[str], answers: Sequence[str], *, confidence: float = 0.95, seed: int = 0) -> Measures:
    """Both with their intervals: Wilson's, and the percentile bootstrap's over rows, which from one row is all there is.

    Nothing is counted label by label. Raises `DataError` when there is no row, or not an answer for each.
    """
    if len(right) != len(answers) or not right:
        got, fix = f"{len(answers)} for {len(right)}", "Answer the rows that are measured."
        raise DataError(expected="an answer for each labelled row", got=got, where="measure", fix=fix)
    exact_N, f1_N = (np.array([score(*pair) for pair in zip(right, answers, strict=True)]) for score in (exact_match, f1))
    found = {
        "exact_match": Interval.around(float(exact_N.mean()), *wilson(int(exact_N.sum()), len(exact_N), confidence=confidence)),
        "f1": Interval.around(float(f1_N.mean()), *_resampled(f1_N, confidence, seed)),
    }
    return Measures(metrics=found, confusion=(), classes=(), labels=(), rows=len(right))


def _resampled(scores_N: Array, confidence: float, seed: int) -> tuple[float, float]:
    if len(scores_N) == 1 or not np.ptp(scores_N):
        share = int(round(float(scores_N.sum())))
        return wilson(share, len(scores_N), confidence=confidence)
    return bootstrap(lambda rows_RN: scores_N[rows_RN].mean(-1), len(scores_N), confidence=confidence, seed=seed)
