"""`predict --engine ray`: the same file to the byte as with one thread here, also where an actor is killed; what is wrong is one line."""

import gzip
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.model import WINDOW
from fewtune.runs import labelling
from fewtune.sources import Rows, Source

pytestmark = pytest.mark.filterwarnings("ignore:`use_.* is deprecated:DeprecationWarning")  # Ray Data warns of its own settings

WORDS = ("great", "fun", "joy", "dull", "mess", "lifeless", "good", "and", "a", "from")
ROWS = 3 * WINDOW + 17


@pytest.fixture
def work(work):
    """A model on a PLM in the same folder, and rows for more than three windows."""
    tiny.save("llama", work / "plm")
    torch.set_num_threads(1)
    task = ft.Task.classification(
        ["no", "yes"], template="{review} It was {slot}", words={"no": "terrible", "yes": "great"}, fields=["review"]
    )
    train = [("great fun", "yes"), ("a dull mess", "no")]
    ft.fit(task, train, backbone="plm", strategy="supervised", options=ft.FitOptions(steps=3), max_length=24).save("model")
    texts = (" ".join(WORDS[(number * step) % 10] for step in range(1, 2 + number % 23)) for number in range(ROWS))
    (work / "big.csv").write_text("id,review\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts)))
    return work


@pytest.fixture(autouse=True)
def workers(monkeypatch):
    """Ray's workers find the code that is tested; everything has one thread."""
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(Path(ft.__file__).parents[1]))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_file_is_the_same(work, fewtune):
    with open("big.csv", "a") as file:
        file.write("1553,\n")
    more = ("--skip-bad-rows", "--batch-size", "16")
    code, out, err = fewtune("predict", "model", "big.csv", "-o", "here.csv", *more)
    assert code == 0 and "Skipped 1 bad rows." in err, err
    code, out, err = fewtune("predict", "model", "big.csv", "-o", "there.csv.gz", "--engine", "ray", *more)
    assert code == 0 and "Skipped 1 bad rows." in err and f"of {ROWS} rows were shortened" in err and f"{ROWS:,} rows in" in err, err
    assert gzip.decompress((work / "there.csv.gz").read_bytes()) == (work / "here.csv").read_bytes()


class Killed(labelling.Labeller):
    """Has its process killed before it answers the second window, once."""

    mark = Path()

    def __call__(self, examples):
        if examples[0].where.endswith(f":{2 + WINDOW}") and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(examples)


def test_what_an_actor_had_that_is_killed_is_done_again(work, fewtune, monkeypatch):
    # The class above travels as it is: actors do not know this file.
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    Killed.mark = work / "mark"
    monkeypatch.setattr(labelling, "Labeller", Killed)
    assert fewtune("predict", "model", "big.csv", "-o", "here.jsonl")[0] == 0
    code, _, err = fewtune("predict", "model", "big.csv", "-o", "there.jsonl", "--engine", "ray")
    assert code == 0 and int((work / "mark").read_text()) != os.getpid(), err
    assert (work / "there.jsonl").read_bytes() == (work / "here.jsonl").read_bytes()


def test_a_bad_row_is_one_line_and_no_file_is_left(work, fewtune):
    with open("big.csv", "a") as file:
        file.write("1553,\n")
    code, _, err = fewtune("predict", "model", "big.csv", "-o", "there.csv", "--engine", "ray")
    assert code == 2 and f"big.csv:{2 + ROWS}: expected" in err.splitlines()[-1] and "Traceback" not in err, err
    assert not list(work.glob("*there*"))


def test_what_is_wrong_is_said_before_ray_is_started(work, fewtune):
    for more, said in (
        (("model", "nothing.csv", "--engine", "ray"), "nothing.csv"),
        (("nothing", "big.csv", "--engine", "ray"), "Give the folder that"),
        (("model", "big.csv", "--ray-address", "auto"), "Add --engine ray"),
        (("model", "big.csv", "--engine", "ray", "-o", "big.csv"), "--overwrite"),
    ):
        code, _, err = fewtune("predict", *more)
        assert code == 2 and said in err.splitlines()[-1], err


def test_windows_are_those_of_a_model_here(work):
    rows = Rows.of(Source(work / "big.csv"), ft.load("model").task)
    read = list(labelling.windows(rows))
    assert [len(window) for window in read] == [WINDOW] * 3 + [17]
    assert [example for window in read for example in window] == [example for _, example in rows.read()]
