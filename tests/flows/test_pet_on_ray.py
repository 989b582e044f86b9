"""PET's members on Ray: the same artifact to the byte, also where a worker is killed in the middle of a member."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import fewtune as ft
from fewtune.backbone.load import load
from fewtune.data.example import Example
from fewtune.errors import DataError
from fewtune.recipe import Recipe
from fewtune.runs import on_ray
from fewtune.strategies.members import Asked, Member
from fewtune.strategies.supervised import Supervised
from fewtune.train.fit import FitOptions, Session, in_turn

ROWS = ["great fun,positive", "a dull mess,negative", "good and great,positive", "terrible lifeless,negative"]
POOL = [f"{one} {two} {three}" for one in ("great", "dull", "good", "mess") for two in ("and", "a") for three in ("fun", "joy", "lifeless")]
TASK = ft.Task.classification(["negative", "positive"], template="{text} It was {slot}", words={"negative": "bad", "positive": "great"})


@pytest.fixture
def work(work):
    (work / "few.csv").write_text("text,label\n" + "\n".join(ROWS) + "\n")
    (work / "pool.csv").write_text("text\n" + "\n".join(POOL) + "\n")
    return work


@pytest.fixture
def workers(monkeypatch):
    """Ray's workers find the code that is tested."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(ft.__file__).parents[1]))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (("ipet:guard=false,generations=1,patterns=2", "--adapt", "tapt:steps=2"), "3 times a member is tuned and asked, on Ray"),
        (("pet:patterns=1,judged=5",), "8 times a member is tuned and asked, on Ray"),
    ],
)
def test_the_artifact_is_the_same(work, fewtune, llama, workers, one_thread, strategy, told):
    def fit(out, *more):
        options = ("--strategy", *strategy, "--steps", "3")
        words = ("--words", "positive=great,negative=terrible")
        return fewtune("fit", "few.csv", "--unlabeled", "pool.csv", "--out", out, "--backbone", llama, *options, *words, *more)

    assert fit("here")[0] == 0
    code, out, err = fit("there", "--engine", "ray")
    assert code == 0 and told in err, err
    assert not (work / ".there.work").exists()
    for path in (work / "here").iterdir():
        assert path.read_bytes() == (work / "there" / path.name).read_bytes(), path.name


@dataclass(frozen=True)
class Killed:
    """Tunes, and has its process killed after five steps, once."""

    mark: Path

    def run(self, recipe, split, backbone, *, session):
        def kill(what, done, steps, loss):
            if done == 5 and not self.mark.exists():
                self.mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

        return Supervised().run(recipe, split, backbone, session=replace(session, every_seconds=0.0, progress=kill))


def test_a_worker_that_is_killed_loses_nothing(tmp_path, llama, workers):
    # The class above travels as it is: workers do not know this file.
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    backbone, said = load(llama), []
    train = tuple(Example({"text": text}, label) for text, label in (row.split(",") for row in ROWS))
    rows = tuple(Example({"text": text}) for text in POOL)
    recipe = Recipe(TASK, llama, (ft.LoRA(rank=2, dropout=0.2),), fit=FitOptions(steps=9, learning_rate=0.01), seed=3)

    def asked(folder, strategy, number, given=train):
        session = Session(folder, "key", f"fit.member-{number}", say=said.append)
        return Asked(Member(f"{number}", replace(recipe, seed=number), backbone, strategy), given, rows, session)

    with on_ray.spread() as spread:
        found = spread([asked(tmp_path / "there", Killed(tmp_path / "mark"), 1), asked(tmp_path / "there", Supervised(), 2)], said.append)
        assert int((tmp_path / "mark").read_text()) != os.getpid()
        assert "Going on with fit.member-1 after step 4 of 9." in said, said
        here = in_turn([asked(None, Supervised(), 1), asked(None, Supervised(), 2)], said.append)
        assert all(torch.equal(one, other) for one, other in zip(found, here, strict=True))
        kept = spread([asked(tmp_path / "there", Killed(tmp_path / "nobody"), 1)], said.append)
        assert torch.equal(kept[0], found[0]) and not (tmp_path / "nobody").exists(), "what is kept is not made anew"
        with pytest.raises(DataError, match="elsewhere"):
            spread([asked(None, Supervised(), 1, (Example({"text": "a"}, "elsewhere"),))], said.append)


def test_many_rows_are_asked_in_parts(tmp_path, llama, workers, monkeypatch):
    """Each part is kept, and all together are what one process says of them one after another."""
    monkeypatch.setattr(on_ray, "_PART", 500)
    backbone, said = load(llama), []
    train = tuple(Example({"text": text}, label) for text, label in (row.split(",") for row in ROWS))
    rows = tuple(Example({"text": f"{POOL[number % len(POOL)]} {number}"}) for number in range(1100))
    recipe = Recipe(TASK, llama, (ft.LoRA(rank=2),), fit=FitOptions(steps=3, learning_rate=0.01), seed=3)

    def asked(folder, number):
        session = Session(folder, "key", f"fit.member-{number}", say=said.append)
        return Asked(Member(f"{number}", replace(recipe, seed=number), backbone, Supervised()), train, rows, session)

    here = in_turn([asked(None, 1), asked(None, 2)], said.append)
    with on_ray.spread() as spread:
        there = spread([asked(tmp_path, 1), asked(tmp_path, 2)], said.append)
        assert "2 times a member is tuned and asked, in parts of 500 rows, on Ray, on 2 processors." in said
        assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
        for part in ("", ".rows-500"):  # as if a machine had gone
            (tmp_path / f"fit.member-1{part}.answers.safetensors").unlink()
        asked_again = []
        monkeypatch.setattr(
            on_ray.Sent, "of", lambda part, plms, of=on_ray.Sent.of: asked_again.append(part.session.label) or of(part, plms)
        )
        assert torch.equal(spread([asked(tmp_path, 1)], said.append)[0], here[0]) and asked_again == ["fit.member-1.rows-500"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--engine", "ray", "--strategy", "supervised"), "--engine: expected a strategy whose parts can be spread, got supervised"),
        (("--engine", "ray"), "got ladder"),
        (("--ray-address", "auto", "--strategy", "pet"), "Add --engine ray"),
    ],
)
def test_where_nothing_can_be_spread_it_is_one_line(work, fewtune, llama, more, said):
    pytest.importorskip("ray")
    code, _, err = fewtune("fit", "few.csv", "--out", "model", "--backbone", llama, *more)
    assert code == 2 and said in err.splitlines()[-1] and "Traceback" not in err
