"""Where a sequence changes: least-squares segmentation into constant pieces, by dynamic programming."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Changes:
    """A sequence as constant pieces, and how that compares with a straight line.

    Attributes:
        at: indices of the first element of every piece but the first.
        bic: Bayesian information criterion of the pieces; the smaller the better. Every level counts as a parameter and
            every place as two, since it is the best of many (Zhang and Siegmund 2007). bic_line, bic_constant: of a
            straight line, and of one level.
    """

    at: tuple[int, ...]
    bic: float
    bic_line: float
    bic_constant: float

    @property
    def preferred(self) -> str:
        """`pieces`, `line` or `constant`: what the criterion prefers."""
        found = {"pieces": self.bic if self.at else np.inf, "line": self.bic_line, "constant": self.bic_constant}
        return min(found, key=lambda name: found[name])


def change_points(values_NL: ArrayLike, n: int | None = None, most: int = 4, shortest: int = 1) -> Changes:
    """The best change points that several sequences have in common (Auger and Lawrence 1989).

    Args:
        values_NL: [sequences, length] or [length]; each sequence has its own levels.
        n: how many change points; None takes the number of the smallest criterion, up to `most`.
        shortest: elements of a piece, at least.
    """
    values_NL = np.atleast_2d(np.asarray(values_NL, dtype=np.float64))
    n_sequences, length = values_NL.shape
    cost_LL = _costs(values_NL)
    most = min(most, length // shortest - 1)
    best = {count: _best(cost_LL, count, shortest) for count in (range(most + 1) if n is None else {0, min(n, most)})}

    def criterion(residual: float, parameters: int) -> float:
        points, floor = values_NL.size, 1e-12 * max(1.0, best[0][0])  # a perfect fit has no logarithm
        return float(points * np.log(max(residual, floor) / points) + parameters * np.log(points))

    def of_pieces(count: int) -> float:
        return criterion(best[count][0], n_sequences * (count + 1) + 2 * count)

    chosen = min(best, key=of_pieces) if n is None else min(n, most)
    x_L = np.arange(length) - (length - 1) / 2
    slope_N = values_NL @ x_L / (x_L**2).sum() if length > 1 else np.zeros(n_sequences)
    line = float(((values_NL - values_NL.mean(1, keepdims=True) - slope_N[:, None] * x_L) ** 2).sum())
    return Changes(best[chosen][1], of_pieces(chosen), criterion(line, 2 * n_sequences), of_pieces(0))


def _costs(values_NL: NDArray[np.float64]) -> NDArray[np.float64]:
    """[start, stop]: squared deviations from their means of elements start to stop − 1, over all sequences."""
    length = values_NL.shape[1]
    sums = np.concatenate([np.zeros((len(values_NL), 1)), values_NL.cumsum(axis=1)], axis=1)
    squares = np.concatenate([[0.0], (values_NL**2).sum(axis=0).cumsum()])
    cost_LL = np.full((length + 1, length + 1), np.inf)
    for start in range(length):
        for stop in range(start + 1, length + 1):
            mean_part = ((sums[:, stop] - sums[:, start]) ** 2).sum() / (stop - start)
            cost_LL[start, stop] = max(0.0, squares[stop] - squares[start] - mean_part)
    return cost_LL


def _best(cost_LL: NDArray[np.float64], count: int, shortest: int) -> tuple[float, tuple[int, ...]]:
    """Least cost of count + 1 pieces, and where they begin."""
    length = len(cost_LL) - 1
    least: dict[int, tuple[float, tuple[int, ...]]] = {
        stop: (float(cost_LL[0, stop]), ()) for stop in range(shortest, length + 1)
    }
    for _ in range(count):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for stop in range(shortest, length + 1):
            options = [
                (value + cost_LL[start, stop], (*at, start))
                for start, (value, at) in least.items() if stop - start >= shortest
            ]
            if options:
                longer[stop] = min(options)
        least = longer
    value, at = least[length]
    return float(value), at
