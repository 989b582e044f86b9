"""What every test of a command starts from: the command line as a user types it, and a tiny model folder."""

import sys

import pytest

from fewtune.backbone import tiny
from fewtune.cli import app as cli

TRAIN = """review,sentiment
great fun and joy,positive
a dull mess,negative
good and great,positive
"terrible, lifeless",negative
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny.save("llama", tmp_path_factory.mktemp("plm") / "llama"))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The folder where commands run, with four labelled reviews in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text(TRAIN)
    return tmp_path


@pytest.fixture
def fewtune(capsys, monkeypatch):
    """(exit code, standard output, standard error) of one command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewtune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run
