"""Members are handed out round by round, and what they say comes back in its place."""

from dataclasses import dataclass, field

import pytest
import torch

from fewtune.data.example import Example
from fewtune.strategies import members
from fewtune.strategies.members import Heard, Member, Round, answered
from fewtune.train import fit
from fewtune.train.fit import Session, in_turn

ROWS = (Example({"text": "a"}), Example({"text": "b"}))
HEARD = Heard("a teacher", {("a",): (0.25, 0.75), ("b",): (0.5, 0.5)})


@dataclass(frozen=True)
class Says(Member):
    """Says how many rows it has learned from and how many it is asked about."""

    def answers(self, train, rows, session):
        return torch.full((len(rows), 2), float(len(train)), dtype=torch.float64)


@dataclass
class Backwards:
    """Does the last piece first."""

    handed: list = field(default_factory=list)

    def __call__(self, pieces, say):
        self.handed.append([piece.session.label for piece in pieces])
        return in_turn(pieces[::-1], say)[::-1]


def test_all_rounds_are_handed_out_at_once_and_each_answer_has_its_place():
    asked, spread = (Says("one", None, None), HEARD, Says("two", None, None)), Backwards()
    rounds = [
        Round([(), (), ROWS], ROWS, Session(label="first")),
        Round([ROWS * 2, (), ROWS * 3], ROWS[:1], Session(label="second")),
    ]
    first_MNC, second_MNC = answered(asked, rounds, Session(spread=spread))
    heard_NC = HEARD.answers((), ROWS, Session())
    assert torch.equal(first_MNC, torch.stack([torch.zeros(2, 2).double(), heard_NC, torch.full((2, 2), 2.0).double()]))
    assert torch.equal(second_MNC, torch.stack([torch.full((1, 2), 4.0).double(), heard_NC[:1], torch.full((1, 2), 6.0).double()]))
    assert spread.handed == [["first.member-1", "first.member-3", "second.member-1", "second.member-3"]], "a teacher is not sent anywhere"


def test_only_the_first_member_of_a_round_tells_how_long_it_takes():
    one, two = Round([(), ()], ROWS, Session()).asked([Says("one", None, None), Says("two", None, None)])
    assert not one.session.told and two.session.told


def test_after_a_quarter_it_is_said_how_long_the_others_will_take():
    said = []
    found = in_turn([lambda number=number: torch.tensor(number) for number in range(8)], said.append)
    assert [int(one) for one in found] == list(range(8)) and said == ["The first 2 of 8 took 0 s, the others will take about 0 s."]


@pytest.mark.parametrize(("pieces", "first"), [(2, 1), (3, 1), (5, 1), (9, 2), (20, 5)])
def test_however_many_they_are_it_is_said_once_in_proportion(pieces, first, monkeypatch):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(fit.time, "perf_counter", lambda: next(clock))
    said = []
    in_turn([lambda: torch.tensor(0)] * pieces, said.append)
    assert said == [f"The first {first} of {pieces} took 10 s, the others will take about {10 * (pieces - first) / first:.0f} s."]


def test_of_a_single_piece_nothing_is_said():
    said = []
    in_turn([lambda: torch.tensor(0)], said.append)
    assert not said


@dataclass(frozen=True)
class Told:
    """A model that counts the rows it answers, and is killed before it answers more than so many."""

    asked: list
    most: int = 100

    def log_probabilities(self, rows):
        self.asked.extend(rows)
        if len(self.asked) > self.most:
            raise KeyboardInterrupt
        return torch.tensor([[float(row.fields["text"]), 0.0] for row in rows])

    def remove(self):
        pass


@dataclass(frozen=True)
class Tuned:
    """Makes that model."""

    model: Told

    def run(self, recipe, split, backbone, *, session):
        return self.model


NUMBERED = tuple(Example({"text": str(number)}) for number in range(10))


def labelled(model, folder=None, say=lambda line: None):
    return Member("one", None, None, Tuned(model)).answers(ROWS, NUMBERED, Session(folder, "key", say=say))


def test_a_long_labelling_that_was_killed_goes_on_behind_the_last_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "_PIECE", 4)
    with pytest.raises(KeyboardInterrupt):
        labelled(Told([], most=8), tmp_path)
    rest = Told([])
    found_NC = labelled(rest, tmp_path)
    assert rest.asked == list(NUMBERED[8:]) and torch.equal(found_NC, labelled(Told([])))
    assert torch.equal(labelled(Told([], most=0), tmp_path), found_NC), "all of it is kept"


def test_answers_that_cannot_be_read_are_made_anew_and_that_is_said(tmp_path):
    (tmp_path / "fit.answers.safetensors").write_bytes(b"cut")
    said = []
    found_NC = labelled(Told([]), tmp_path, said.append)
    assert torch.equal(found_NC, labelled(Told([]))) and len(said) == 2
    assert said[0].endswith("fit.answers.safetensors cannot be read; starting fit anew.") and said[1].startswith("Labelled 10 rows")


def test_how_fast_rows_are_labelled_and_how_long_the_others_take_is_said_once(monkeypatch):
    monkeypatch.setattr(members, "_PIECE", 4)
    monkeypatch.setattr(members.time, "perf_counter", iter((0.0, 2.0)).__next__)
    said = []
    labelled(Told([]), say=said.append)
    assert said == ["Labelled 4 rows, 2.0 a second; 6 more take about 3 s."]
    monkeypatch.setattr(members, "_PIECE", 500)
    monkeypatch.setattr(members.time, "perf_counter", iter((0.0, 5.0)).__next__)
    labelled(Told([]), say=said.append)
    assert said[1:] == ["Labelled 10 rows, 2.0 a second."]
