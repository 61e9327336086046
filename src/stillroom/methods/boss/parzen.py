"""The surrogate: a tree-structured Parzen estimator for one dimension, as the paper's code calls it from its library (section 5 of BOSS's
specification; Bergstra et al. 2011).

Finished trials are split into a few good ones ("below") and the rest ("above"); each part gives a density, a mixture of truncated normals
around its values and of one broad prior; the candidate whose densities have the largest ratio is tried next. Dimensions are proposed
independently of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import InputError

STARTUP = 10  # finished trials before which proposals are uniform
CANDIDATES = 24
_MOST_BELOW = 25
_RECENT = 25  # newest trials that weigh the same
_NARROWEST = 1e-12  # width of a kernel where it is not bounded from below


@dataclass(frozen=True)
class Dimension:
    """One number to propose.

    Args:
        low, high: the range, both ends included.
        log: whether it is searched on a logarithmic scale.
        integer: whether it is a whole number; its values are then bins of width 1 around whole numbers.

    Raises:
        InputError: an empty range, or one on a logarithmic scale that is not above 0.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= self.high < math.inf or (self.log and self.low <= 0):
            raise InputError("range", f"[{self.low}, {self.high}]", f"two finite numbers in order{', above 0' if self.log else ''}")

    @property
    def bounds(self) -> tuple[float, float]:
        """L and H of the internal space: logarithms of a log dimension; a whole number's bins reach half a step further."""
        half = 0.5 if self.integer else 0.0
        low, high = self.low - half, self.high + half
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def inside(self, values: np.ndarray) -> np.ndarray:
        """Values in the internal space, float64."""
        values = np.asarray(values, np.float64)
        return np.log(values) if self.log else values

    def outside(self, values: np.ndarray) -> np.ndarray:
        """Values of the internal space as they are used: whole where they must be, and within the range."""
        values = np.exp(values) if self.log else values
        return np.clip(np.rint(values) if self.integer else values, self.low, self.high)


@dataclass(frozen=True)
class Parzen:
    """A density over the internal space of a dimension: a mixture of K truncated normals, the prior last.

    Attributes:
        dimension: what it is over.
        weights: [K] float64, sum 1.
        centres, widths: [K] float64, in the internal space; observations in the order of their trials.
    """

    dimension: Dimension
    weights: np.ndarray
    centres: np.ndarray
    widths: np.ndarray

    @staticmethod
    def of(
        observations: Sequence[float] | np.ndarray,
        dimension: Dimension,
        *,
        prior_weight: float = 1.0,
        magic_clip: bool = True,
        consider_endpoints: bool = False,
    ) -> Parzen:
        """The density around observed values.

        Args:
            observations: [n], as they were used, in the order of their trials' numbers.
            dimension: of the values.
            prior_weight: of the broad kernel, beside 1 for a recent observation.
            magic_clip: bound widths from below, the less the more observations there are.
            consider_endpoints: let the outermost observations be as wide as their distance from the ends of the range.
        """
        low, high = dimension.bounds
        whole = high - low
        centres = np.append(dimension.inside(np.asarray(observations)), (low + high) / 2)
        count = len(centres) - 1
        weights = np.append(_ages(count), prior_weight)
        order = np.argsort(centres, kind="stable")  # of equal centres the prior is the last
        gaps = np.diff(np.concatenate([[low], centres[order], [high]]))
        sorted_widths = np.maximum(gaps[:-1], gaps[1:])
        if count and not consider_endpoints:
            sorted_widths[0], sorted_widths[-1] = gaps[1], gaps[-2]
        widths = np.empty_like(sorted_widths)
        widths[order] = sorted_widths
        narrowest = whole / min(100.0, 1.0 + len(centres)) if magic_clip else _NARROWEST
        widths = np.clip(widths, narrowest, whole)
        widths[-1] = whole
        return Parzen(dimension, weights / weights.sum(), centres, widths)

    def log_density(self, points: Sequence[float] | np.ndarray) -> np.ndarray:
        """[M] float64: log density at points as they are used, in the internal space (no Jacobian); of whole numbers the log mass of
        their bins."""
        from scipy.special import log_ndtr, logsumexp

        low, high = self.dimension.bounds
        x_M1 = self.dimension.inside(np.asarray(points))[:, None]
        within_K = _log_mass((low - self.centres) / self.widths, (high - self.centres) / self.widths, log_ndtr)
        if self.dimension.integer:
            left, right = (self.dimension.inside(np.asarray(points, np.float64) + half)[:, None] for half in (-0.5, 0.5))
            log_kernels = _log_mass((left - self.centres) / self.widths, (right - self.centres) / self.widths, log_ndtr)
        else:
            log_kernels = -0.5 * ((x_M1 - self.centres) / self.widths) ** 2 - np.log(self.widths) - 0.5 * math.log(2 * math.pi)
        found: np.ndarray = logsumexp(np.log(self.weights) + log_kernels - within_K, axis=1)
        return found

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """[count] float64: values as they are used, drawn from the density."""
        from scipy.special import ndtr, ndtri

        low, high = self.dimension.bounds
        chosen = generator.choice(len(self.weights), count, p=self.weights)
        centre, width = self.centres[chosen], self.widths[chosen]
        first, last = ndtr((low - centre) / width), ndtr((high - centre) / width)
        drawn = centre + width * ndtri(first + generator.random(count) * (last - first))
        return self.dimension.outside(np.clip(drawn, low, high))


def split(values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finished trials in two parts, the best min(ceil(n / 10), 25) and the rest: their places, int64, in ascending order.

    Args:
        values: [n], larger is better; of equal ones the earlier is.
    """
    values = np.asarray(values, np.float64)
    best_first = np.argsort(-values, kind="stable")
    count = min(math.ceil(0.1 * len(values)), _MOST_BELOW)
    return np.sort(best_first[:count]), np.sort(best_first[count:])


def acquisition(
    observed: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    candidates: Sequence[float] | np.ndarray,
    dimension: Dimension,
) -> np.ndarray:
    """[M] float64: log of the ratio of the good trials' density to the others' at each candidate.

    Args:
        observed: [n], the dimension's values in finished trials, in their order; NaN where a trial lacks it.
        values: [n], what they reached; larger is better.
        candidates: [M].
        dimension: of them.
    """
    good, rest = densities(observed, values, dimension)
    return good.log_density(candidates) - rest.log_density(candidates)


def densities(observed: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray, dimension: Dimension) -> tuple[Parzen, Parzen]:
    """The densities of the good trials and of the rest; a trial that lacks the dimension is in neither. See `acquisition`."""
    observed = np.asarray(observed, np.float64)
    below, above = (observed[part] for part in split(values))
    return Parzen.of(below[~np.isnan(below)], dimension), Parzen.of(above[~np.isnan(above)], dimension)


def propose(
    observed: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    dimension: Dimension,
    generator: np.random.Generator,
    *,
    startup: int = STARTUP,
    candidates: int = CANDIDATES,
) -> float:
    """The value to try next: uniform while fewer than `startup` trials are finished, then the best of so many drawn candidates."""
    if dimension.low == dimension.high:
        return dimension.low
    if len(np.asarray(values)) < startup:
        low, high = dimension.bounds
        return float(dimension.outside(np.asarray(generator.uniform(low, high))))
    good, rest = densities(observed, values, dimension)
    drawn = good.sample(candidates, generator)
    return float(drawn[np.argmax(good.log_density(drawn) - rest.log_density(drawn))])


def _ages(count: int) -> np.ndarray:
    """Weights of observations, the oldest first: 1 for the newest 25, and rising to that before them."""
    older = max(count - _RECENT, 0)
    return np.concatenate([np.linspace(1 / max(count, 1), 1, older), np.ones(count - older)])


def _log_mass(low: np.ndarray, high: np.ndarray, log_ndtr: np.ufunc) -> np.ndarray:
    """Log of a standard normal's mass between two points, exact also far out in its tails."""
    flipped = low > 0  # the right tail is the left one mirrored, where differences keep their digits
    low, high = np.where(flipped, -high, low), np.where(flipped, -low, high)
    upper, lower = log_ndtr(high), log_ndtr(low)
    return upper + np.log1p(-np.exp(lower - upper))
