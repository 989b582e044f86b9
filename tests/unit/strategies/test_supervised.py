"""The cache of frozen states changes nothing but the time: the same losses, each row computed once for all epochs and folds."""

import pytest
import torch

import fewtune as ft
from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.readout.calibration import Temperature
from fewtune.readout.head import Head
from fewtune.train.cache import StateCache
from fewtune.train.fit import FitOptions, Session

TEXTS = ["great fun", "a dull mess", "good and great", "terrible lifeless", "a joy from start to finish", "dull", "fun", "lifeless"]
TRAIN = tuple(Example({"text": text}, ["yes", "no"][number % 2]) for number, text in enumerate(TEXTS))
TASK = ft.Task.classification(["no", "yes"])


class Counting(Backbone):
    """Knows how many rows it computed up to the first trained block."""

    rows = 0

    def below(self, ids_BT, *arguments, **options):
        self.rows += len(ids_BT)
        return super().below(ids_BT, *arguments, **options)


def run(delta, cache, *, family="bert", calibration=None, steps=12):
    backbone = Counting(*tiny.model(family), name=family)
    losses, said = [], []
    session = Session(progress=lambda what, done, all, loss: losses.append(loss), say=said.append, cache=cache)
    options = FitOptions(steps=steps, batch_size=4, learning_rate=0.01)
    settings = job.Settings(deltas=(delta,), readout=Head(dropout=0.0), fit=options, calibration=calibration)
    model = job.tune(TASK, Split(train=TRAIN), backbone, settings, session=session)
    return losses, model.raw_scores(TRAIN), said, backbone


@pytest.mark.parametrize("delta", [LoRA(rank=2, top=1 / 3), Adapter(size=3, top=1 / 3), Prefix(length=2, top=1 / 3)], ids=str)
@pytest.mark.parametrize("family", ["bert", "llama", "albert", "t5"])
@pytest.mark.slow
def test_the_loss_curve_is_that_of_a_run_without_it(family, delta):
    with_it, without = run(delta, StateCache(), family=family), run(delta, StateCache(most_bytes=0, most_disk=0), family=family)
    in_file = run(delta, StateCache(most_bytes=200), family=family)
    for other in (without, in_file):
        assert with_it[0] == pytest.approx(other[0], abs=1e-5)
        torch.testing.assert_close(with_it[1], other[1], atol=1e-4, rtol=1e-4)
    assert len(with_it[0]) == 12 and with_it[0][0] != with_it[0][-1]


@pytest.mark.slow
def test_it_says_so_and_says_when_it_is_full():
    kept = run(LoRA(rank=2, top=1 / 3), StateCache())[2]
    assert any("States below block 2 of 3 are computed once and kept" in line for line in kept)
    full = run(LoRA(rank=2, top=1 / 3), StateCache(most_bytes=300, most_disk=0))[2]
    assert any("is full" in line for line in full)


@pytest.mark.slow
def test_each_row_is_computed_once_for_all_folds():
    folds_of_four = run(LoRA(rank=2, top=1 / 3), cache := StateCache(), calibration=Temperature())
    assert len(cache.states) == len(TRAIN)
    assert len(folds_of_four[0]) == 5 * 12
    again = run(LoRA(rank=2, top=1 / 3), cache)
    assert again[0] == pytest.approx(folds_of_four[0][-12:], abs=1e-6)
    # What the forecast tries out aside, a run that finds everything computes nothing.
    assert again[3].rows < folds_of_four[3].rows


def test_it_is_not_used_where_it_would_not_pay():
    cache = StateCache()
    run(LoRA(rank=2, top=1 / 3), cache, steps=2)  # two steps of four see each row once
    run(LoRA(rank=2), cache)  # nothing is frozen below
    assert not cache.states
