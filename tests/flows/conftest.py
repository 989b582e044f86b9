"""What every test of a command starts from: a tiny model folder, and a few rows."""

import pytest

from fewtune.backbone import tiny

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
