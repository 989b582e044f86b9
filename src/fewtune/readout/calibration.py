"""Calibrations: from scores, and targets where needed, to a function that mends scores. Knows numbers; nothing of texts or models.

Each calibration is a frozen value whose one verb is `fit`; what it learns is one shape for all of them, a `Calibrator`.
Dimensions: N rows, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fewtune import registry
from fewtune.errors import BackboneError, SpecError
from fewtune.train.losses import cross_entropy

Needs = Literal["nothing", "content_free", "premise", "targets", "unlabeled"]
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, after Zhao et al. 2021, section 5."""

LEAST_PROBABILITY = 1e-6  # a candidate that content-free inputs never get may gain no more than this factor
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Calibrator:
    """`(log_softmax(scores) - bias) / temperature`: a learned bias per candidate and one temperature.

    Where rows have candidates of their own `bias_C` is empty. With `premise` the bias of each row's candidate is what the PLM as it is
    makes of it in the template alone; whoever computes the scores takes it off them (`TunedModel.scores`).
    """

    bias_C: tuple[float, ...]
    temperature: float = 1.0
    premise: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that would spoil every score."""
        if not all(map(math.isfinite, self.bias_C)):
            raise SpecError(expected="finite biases", got=str(self.bias_C), where="calibrator.bias_C", fix="Fit the calibration again.")
        if not 0 < self.temperature < math.inf:
            got = str(self.temperature)
            raise SpecError(expected="a positive temperature", got=got, where="calibrator.temperature", fix="Fit the calibration again.")

    def __call__(self, scores_NC: Tensor) -> Tensor:
        """Calibrated scores; softmax gives probabilities. Each row for itself.

        Returned in float64 on the CPU, so that probabilities carry no rounding of the model's precision.
        """
        if self.bias_C and scores_NC.shape[-1] != len(self.bias_C):
            expected, got = f"scores of {len(self.bias_C)} candidates", f"{scores_NC.shape[-1]}"
            raise SpecError(expected=expected, got=got, where="calibrator", fix="Fit the calibration again with these labels.")
        return (log_probabilities(scores_NC) - self.bias) / self.temperature

    def each(self, scores_NC: Tensor) -> Tensor:
        """Calibrated scores of candidates that are judged each for itself; sigmoid gives probabilities. In float64 on the CPU."""
        return (scores_NC.detach().cpu().to(torch.float64) - self.bias) / self.temperature

    @property
    def bias(self) -> Tensor:
        """bias_C, one number for all where there is none for each candidate; float64."""
        return torch.tensor(self.bias_C or (0.0,), dtype=torch.float64)

    @classmethod
    def identity(cls, candidates: int) -> Calibrator:
        """The one that leaves probabilities as they are."""
        return cls(bias_C=(0.0,) * candidates)

    @classmethod
    def from_dict(cls, data: Mapping[str, registry.Plain], where: str = "calibrator") -> Calibrator:
        """The value that `to_dict` wrote; errors carry the key path."""
        return registry.from_dict(cls, data, where)

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return registry.to_dict(self)


class Calibration(Protocol):
    """A way to mend scores; `needs` says what `fit` must be given besides the number of candidates."""

    needs: ClassVar[Needs]

    def fit(self, scores_NC: Tensor, targets_N: Tensor | None) -> Calibrator:
        """Learn from the scores (before softmax) of the inputs that `needs` names, and their targets if it names these."""
        ...


@dataclass(frozen=True)
class Uncalibrated:
    """Scores stay as they are."""

    needs: ClassVar[Needs] = "nothing"

    def fit(self, scores_NC: Tensor, targets_N: Tensor | None = None) -> Calibrator:
        """The identity for as many candidates as there are columns; rows may be none."""
        return Calibrator.identity(scores_NC.shape[-1])


@dataclass(frozen=True)
class Contextual:
    """Divide by what inputs that say nothing get (Zhao et al. 2021, section 5: `W = diag(p_cf)^-1`, `b = 0`)."""

    needs: ClassVar[Needs] = "content_free"

    def fit(self, scores_NC: Tensor, targets_N: Tensor | None = None) -> Calibrator:
        """`scores_NC` are those of content-free inputs, a row each; the bias is the log of their mean probabilities.

        Probabilities below 1e-6 count as 1e-6. Raises `SpecError` without a row, `BackboneError` for scores that are not finite.

        >>> calibrator = Contextual().fit(torch.tensor([[0.8, 0.2]]).log())
        >>> calibrator(torch.tensor([[0.8, 0.2]]).log()).softmax(-1).tolist()[0][0]
        0.5
        """
        check(scores_NC)
        mean_C = log_probabilities(scores_NC).exp().mean(0).clamp(min=LEAST_PROBABILITY)
        return Calibrator(bias_C=tuple((mean_C / mean_C.sum()).log().tolist()))


@dataclass(frozen=True)
class Temperature:
    """One temperature for all scores, from labelled rows (Guo et al. 2017, section 4.2); which candidate is first never changes."""

    needs: ClassVar[Needs] = "targets"

    def fit(self, scores_NC: Tensor, targets_N: Tensor | None) -> Calibrator:
        """The temperature from 0.05 to 20 under which the targets are most likely; best fitted on rows that were not trained on.

        `targets_N` are indices, or targets_NC a distribution over the candidates for each row, or a yes or no for each candidate.
        Where every row's target is clearly first, colder is always likelier and nothing is learned of how sure to be: the temperature
        stays 1. Where targets are no likelier than chance, hotter is better and the temperature is the highest.
        Raises `SpecError` without a row or targets that fit, `BackboneError` for scores that are not finite.
        """
        check(scores_NC, padded=True)
        aims = _aims(targets_N, scores_NC)
        logits_NC = _logits(scores_NC, aims)
        temperature = 1.0 if _all_right(logits_NC, aims) else _most_likely_temperature(logits_NC, aims)
        return Calibrator(bias_C=(0.0,) * scores_NC.shape[-1], temperature=temperature)


def _most_likely_temperature(logits_NC: Tensor, targets: Tensor, *, spread: float = math.inf) -> float:
    """The temperature under which the targets are likeliest; its logarithm is expected around 0, with the standard deviation `spread`."""
    # The loss is convex in 1 / T, so it has a single valley in log T and a bounded search finds it.
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    def loss(log_temperature: float) -> float:
        surprise = (log_temperature / spread) ** 2 / 2 / len(targets)
        return surprise + cross_entropy(logits_NC / math.exp(log_temperature), targets).item()

    bounds = tuple(map(math.log, _TEMPERATURES))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def likeliest(calibrators: Iterable[Calibrator], scores_NC: Tensor, targets: Tensor) -> Calibrator:
    """The one under which the targets are likeliest; the first of equals."""
    return min(calibrators, key=lambda one: cross_entropy(one(scores_NC), targets).item())


def expected_temperature(scores_NC: Tensor, targets_N: Tensor) -> float:
    """The temperature for scores of few rows: the likeliest one where one between a third and three is expected beforehand.

    So it is no extreme where each row's target is first, stays near 1 where the rows say little, and goes far where they say much. Targets
    have the forms that `Temperature` takes.
    """
    check(scores_NC, padded=True)
    aims = _aims(targets_N, scores_NC)
    return _most_likely_temperature(_logits(scores_NC, aims), aims, spread=1.0)


def _logits(scores_NC: Tensor, aims: Tensor) -> Tensor:
    """log-probabilities_NC; scores as they are where each candidate is judged for itself."""
    return scores_NC.detach().cpu().to(torch.float64) if aims.dtype == torch.bool else log_probabilities(scores_NC)


def _all_right(logits_NC: Tensor, targets: Tensor) -> bool:
    if targets.dtype == torch.bool:
        return bool((torch.where(targets, logits_NC, -logits_NC) > 0).all())
    if targets.is_floating_point():
        if bool((targets.amax(1) < 1).any()):
            return False  # a row that is partly one candidate, partly another, is never likelier the colder it is
        targets = targets.argmax(1)
    target_N1 = logits_NC.gather(1, targets[:, None])
    return bool(((logits_NC >= target_N1).sum(1) == 1).all())


def _aims(targets_N: Tensor | None, scores_NC: Tensor) -> Tensor:
    rows, candidates = scores_NC.shape
    if targets_N is None:
        raise SpecError(expected="targets", got="none", where="calibration", fix="Give labelled rows, or calibrate with contextual.")
    if targets_N.shape == scores_NC.shape and (targets_N.is_floating_point() or targets_N.dtype == torch.bool):
        aims = targets_N.detach().cpu()
        return aims if aims.dtype == torch.bool else aims.to(torch.float64)
    if targets_N.shape != (rows,) or bool(((targets_N < 0) | (targets_N >= candidates)).any()):
        expected = f"{rows} targets from 0 to {candidates - 1}"
        raise SpecError(expected=expected, got="others", where="calibration", fix="Give one target for each row of scores.")
    return targets_N.cpu().long()


def check(scores_NC: Tensor, *, padded: bool = False) -> None:
    """Raise `SpecError` for scores without a row or a candidate, `BackboneError` for scores that are not finite.

    `padded` scores may be -inf where a row has fewer candidates than others, but not fewer than two.
    """
    if scores_NC.ndim != 2 or 0 in scores_NC.shape:
        expected, got = "scores of at least one row and candidate", f"shape {tuple(scores_NC.shape)}"
        raise SpecError(expected=expected, got=got, where="calibration", fix="Give the scores of the inputs that it needs.")
    sound_NC = scores_NC.isfinite()
    if padded and scores_NC.shape[1] > 1:
        sound_NC = sound_NC | scores_NC.isneginf() & (sound_NC.sum(1, keepdim=True) > 1)
    if not bool(sound_NC.all()):
        fix = "Use --precision float32; if that is in use, the PLM's weights or the learning rate are unsound."
        raise BackboneError(expected="finite scores", got="others", where="calibration", fix=fix)


def log_probabilities(scores_NC: Tensor) -> Tensor:
    """log_softmax over the candidates, float64 on the processor, without a graph."""
    return scores_NC.detach().cpu().to(torch.float64).log_softmax(-1)
