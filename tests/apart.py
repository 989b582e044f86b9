"""Commands in processes of their own, which a test may slow down, interrupt and kill. Each is forked from one process that has imported
everything, so that a start costs no seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

FORKS = get_context("forkserver")
MODELS = (f"transformers.models.{name}" for name in ("auto", "bert.modeling_bert", "bert.tokenization_bert", "llama.modeling_llama"))
FORKS.set_forkserver_preload(
    [
        "rich.progress",
        "fewtune.cli.app",
        "fewtune.pretraining",
        "fewtune.compressing",
        "fewtune.answering",
        "fewtune.backbone.tiny",
        *MODELS,
    ]
)


class Apart:
    """`fewtune` with these arguments, in a folder, keeping a checkpoint after every step. The function `at`, "module:name", takes `slow`
    seconds longer."""

    def __init__(self, folder: Path, *arguments: str, slow: float = 0.0, at: str = "fewtune.train.fit:_step") -> None:
        self._said = [folder / f".{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        self._process = FORKS.Process(target=_run, args=(folder, arguments, slow, at, self._said))
        self._process.start()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self, seconds: float = 300) -> tuple[int | None, str, str]:
        """(exit code, standard output, standard error) once it has ended."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "it does not end"
        out, err = (path.read_text() for path in self._said)
        for path in self._said:
            path.unlink()
        return self._process.exitcode, out, err

    def kill(self) -> None:
        """Before it has come to its end."""
        self.stop(signal.SIGKILL)
        assert self.finish()[0] == -signal.SIGKILL


def wait_until(there: Callable[[], bool], seconds: float = 120) -> None:
    """Until it is; fails after so long."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def _run(folder: Path, arguments: tuple[str, ...], slow: float, at: str, said: list[Path]) -> None:
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    # A shell lets what it runs in the background ignore Ctrl-C, and so would all that is started from there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from fewtune.cli import app as cli
    from fewtune.train import fit

    torch.set_num_threads(1)
    module, name = at.split(":")
    owner, make = import_module(module), fit.Session.__init__
    plain = getattr(owner, name)

    def eager(self, *given, **options):
        make(self, *given, **{**options, "every_seconds": 0.0})

    def slowly(*given, **options):
        time.sleep(slow)
        return plain(*given, **options)

    fit.Session.__init__ = eager
    setattr(owner, name, slowly)
    sys.argv = ["fewtune", *arguments]
    cli.main()
