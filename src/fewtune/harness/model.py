"""A tuned model as one of lm-evaluation-harness' own. The only module that knows the harness, which it imports where it is asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fewtune import artifact
from fewtune.errors import SpecError
from fewtune.harness.answers import MOST, Answers
from fewtune.plm import load

NAME = "fewtune"
"""What the harness calls the model."""


class Asked(Protocol):
    """A request of the harness: the arguments of one question."""

    args: tuple[Any, ...]


class Model:
    """The questions of the harness, answered by a PLM with a model's deltas in it.

    `model` is an artifact's folder; a `backbone` alone is a PLM without any delta. Templates, label words and calibration are those of the
    harness' task: it reads likelihoods and makes answers of them itself.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backbone: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size  # what goes through the stack together is settled by tokens
        if (model is None) == (backbone is None):
            fix = "Give model=FOLDER, or backbone=NAME for a PLM as it is."
            raise SpecError(expected="a model or a backbone", got="both" if model else "neither", where="model_args", fix=fix)
        plm = artifact.load_one(Path(model), device=device).backbone if model else load(str(backbone), device=device)
        self.answers = Answers(plm, max_length)

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells caches of requests apart."""
        return self.answers.backbone.tokenizer_fingerprint

    def loglikelihood(self, requests: Sequence[Asked], **_: object) -> list[tuple[float, bool]]:
        """See `Answers.loglikelihood`."""
        return self.answers.loglikelihood([request.args for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Asked], **_: object) -> list[float]:
        """See `Answers.rolling`."""
        return self.answers.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: Sequence[Asked], **_: object) -> list[str]:
        """See `Answers.until`; raises `SpecError` for a task that wants sampling."""
        return self.answers.until([_asked(*request.args) for request in requests])


def register() -> type[Model]:
    """The same as a class of the harness', which its command line finds as `fewtune`; raises `ImportError` without the harness."""
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    made: type[Model] = register_model(NAME)(type("FewtuneLM", (Model, LM), {}))
    return made


def _asked(context: str, options: Mapping[str, Any]) -> tuple[str, tuple[str, ...], int]:
    if options.get("do_sample") or options.get("temperature"):
        fix = "Set do_sample to false and temperature to 0 in the task."
        raise SpecError(expected="greedy generation", got="sampling", where="generation_kwargs", fix=fix)
    until = options.get("until") or ()
    return context, (until,) if isinstance(until, str) else tuple(until), int(options.get("max_gen_toks") or MOST)
