"""Members are handed out round by round, and what they say comes back in its place."""

from dataclasses import dataclass, field

import torch

from fewtune.data.example import Example
from fewtune.strategies.members import Heard, Member, Round, answered
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
    members, spread = (Says("one", None, None), HEARD, Says("two", None, None)), Backwards()
    rounds = [
        Round([(), (), ROWS], ROWS, Session(label="first")),
        Round([ROWS * 2, (), ROWS * 3], ROWS[:1], Session(label="second")),
    ]
    first_MNC, second_MNC = answered(members, rounds, Session(spread=spread))
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
    in_turn([lambda: torch.tensor(0)] * 3, said.append)
    assert len(said) == 1
