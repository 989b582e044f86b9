"""The command line: which commands there are, and how the process ends.

Nothing heavy is imported before a command runs, so that `fewtune --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from fewtune.cli import backbones, compare, compress, exits, harness, jobs, multitask, onnx, peft, pretrain, search, templates, zeroshot
from fewtune.errors import FewtuneError, InputError

_STOPPED = 130
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tune pre-trained language models with few labels and few parameters.",
)
app.add_typer(backbones.app, name="backbones")
for group in (jobs, harness, onnx, peft, templates, compare, search, pretrain, exits, compress, zeroshot, multitask):
    group.register(app)


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 the user's input is wrong, 130 Ctrl-C where nothing is kept, 1 anything else."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except FewtuneError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("Stopped.", _STOPPED)
    except SystemExit as ended:  # typer makes one of Ctrl-C
        if ended.code == _STOPPED:
            _fail("Stopped.", _STOPPED)
        raise
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain again while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
