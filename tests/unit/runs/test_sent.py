"""A member that is asked in another process says the same as here, and keeps it where the job does."""

import pickle
from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.load import load
from fewtune.data.example import Example
from fewtune.errors import BackboneError
from fewtune.recipe import Recipe
from fewtune.runs import sent
from fewtune.runs.sent import Sent
from fewtune.runs.worker import Worker
from fewtune.strategies.members import Asked, Member
from fewtune.train.fit import FitOptions, Session

TASK = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}", words={"no": "terrible", "yes": "great"})
TRAIN = tuple(Example({"text": text}, label) for text, label in (("great fun", "yes"), ("a dull mess", "no"), ("good joy", "yes")))
ROWS = tuple(Example({"text": text}) for text in ("great fun and joy", "a mess", "lifeless"))


@pytest.fixture(scope="module")
def plms(tmp_path_factory):
    return {name: str(tiny.save(name, tmp_path_factory.mktemp("plm") / name)) for name in ("llama", "bert")}


@pytest.fixture
def asked(plms, tmp_path):
    recipe = Recipe(TASK, plms["llama"], (ft.LoRA(rank=2, dropout=0.2),), fit=FitOptions(steps=4, learning_rate=0.01), seed=5)
    return Asked(Member("one", recipe, load(plms["llama"])), TRAIN, ROWS, Session(tmp_path / "here", "key", "fit.member-1"))


def there(asked, worker=None):
    travelled = pickle.loads(pickle.dumps(Sent.of(asked, [asked.member.backbone.name])))
    return travelled.answers(worker or Worker(), asked.train, asked.rows, asked.member.pool)


def test_it_says_the_same_as_here(asked, tmp_path):
    before = torch.get_num_threads()
    found_NC, said = there(replace(asked, session=replace(asked.session, folder=tmp_path / "there")))
    assert torch.equal(found_NC, asked()) and any("4 steps" in line for line in said)
    assert torch.get_num_threads() == before
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(path.name for path in (tmp_path / "here").iterdir())


@pytest.mark.slow
def test_it_says_the_same_whoever_was_asked_before(asked, plms):
    other = replace(asked, member=replace(asked.member, recipe=replace(asked.member.recipe, seed=6)), session=Session())
    asked, worker = replace(asked, session=Session()), Worker()
    alone = there(asked)[0]
    assert not torch.equal(there(other, worker)[0], alone) and torch.equal(there(asked, worker)[0], alone)


def test_what_is_kept_is_found_there_and_here(asked):
    found_NC, _ = there(asked)
    assert torch.equal(asked.kept(), found_NC)
    assert replace(asked, session=replace(asked.session, key="another")).kept() is None


def test_on_another_machine_nothing_is_kept_until_it_comes_home(asked, monkeypatch):
    travelled = Sent.of(asked, [asked.member.backbone.name])
    monkeypatch.setattr(sent.socket, "gethostname", lambda: "elsewhere")
    found_NC, _ = travelled.answers(Worker(), asked.train, asked.rows, ())
    assert asked.kept() is None and not asked.session.folder.exists()
    asked.keep(found_NC)
    assert torch.equal(asked.kept(), found_NC)


def test_another_plm_of_the_same_name_is_refused(asked):
    wrong = replace(Sent.of(asked, [asked.member.backbone.name]), fingerprints=("another", "one"))
    with pytest.raises(BackboneError, match="Have the same files on every machine"):
        wrong.answers(Worker(), asked.train, asked.rows, ())


def test_members_of_several_plms_are_told_apart(asked, plms):
    one = Sent.of(replace(asked, session=Session()), [plms["bert"], plms["llama"]])
    found_NC, _ = one.answers(Worker(), asked.train, asked.rows, ())
    assert torch.equal(found_NC, replace(asked, session=Session())())
