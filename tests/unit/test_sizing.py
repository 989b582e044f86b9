"""Bytes, and points lost, by hand."""

import numpy as np
import pytest
import torch

import fewtune as ft
from fewtune import artifact, plm
from fewtune.backbone import tiny
from fewtune.compressing import Target, ladder, parts, way
from fewtune.data.example import Example
from fewtune.deltas.mask import Mask, gone
from fewtune.deltas.shallow import Shallow
from fewtune.errors import DataError
from fewtune.model import TunedModel
from fewtune.sizing import Beside, Bytes, Measured, bytes_of, lost
from fewtune.strategies.compression import COMPRESSIONS
from fewtune.strategies.distill import Distill
from fewtune.strategies.int8 import ToInt8
from fewtune.tasks.metrics import Interval, Ratio

TASK = ft.Task.classification(["neg", "pos"])


@pytest.mark.parametrize(
    "deltas", [(), (ft.LoRA(rank=2),), (ft.Subset("all"),), (Shallow(2), ft.Subset("all")), (Shallow(2), ft.LoRA(rank=2))]
)
def test_bytes_are_those_of_the_weights_that_answer(deltas, tmp_path):
    backbone = plm.load(str(tiny.save("bert", tmp_path / "plm", blocks=4)))
    whole = sum(tensor.nbytes for tensor in (*backbone.model.parameters(), *backbone.model.buffers()))
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in backbone.blocks]
    trainable = sum(weight.nbytes for weight in backbone.model.parameters())
    installed = tuple(delta.install(backbone, generator=torch.Generator().manual_seed(0)) for delta in deltas)
    model = TunedModel.assemble(backbone, TASK, ft.Head(), deltas=installed)
    folder = artifact.save(model, tmp_path / "model")
    on_disk = sum(path.stat().st_size for path in folder.iterdir())
    remains = whole - (sum(blocks[:2]) if Shallow(2) in deltas else 0)
    own = sum(weight.nbytes for weight in model.reader.weights.values())
    own += sum(weight.nbytes for one in installed for weight in one.weights.values() if isinstance(one.delta, ft.LoRA))
    found = bytes_of(folder, model)
    assert found.artifact == on_disk and found.loaded == remains + own
    frozen = remains - (trainable - (whole - remains)) if ft.Subset("all") in deltas else remains
    assert found.needed == on_disk + frozen


def test_what_a_mask_leaves_of_the_plm_is_needed_beside_its_bits(tmp_path):
    backbone = plm.load(str(tiny.save("bert", tmp_path / "plm", blocks=2)))
    words = backbone.model.get_input_embeddings().weight
    others = sum(tensor.nbytes for tensor in (*backbone.model.parameters(), *backbone.model.buffers())) - words.nbytes
    mask = Mask(share=0.75, sites=("words",), values="own").install(backbone, generator=torch.Generator())
    model = TunedModel.assemble(backbone, TASK, ft.Head(), deltas=(mask,))
    found = bytes_of(artifact.save(model, tmp_path / "model"), model)
    remain = words.numel() - round(0.75 * words.numel())
    assert gone(mask) == words.numel() - remain and found.needed == found.artifact + others + 4 * remain


def test_points_lost_by_hand():
    rows = np.ones(8)
    full, small = (
        Ratio("accuracy", np.array([1, 1, 1, 1, 1, 1, 0, 0.0]), rows),
        Ratio("accuracy", np.array([1, 1, 1, 1, 0, 0, 0, 1.0]), rows),
    )
    found = lost(full, small)
    assert found.value == pytest.approx(12.5) and found.low < 12.5 < found.high
    same = lost(full, full)
    assert same.value == 0 and same.low == pytest.approx(-same.high) and same.high > 20  # of eight rows little is known
    errors = Ratio("mae", np.full(8, 0.2), rows, most=2.0), Ratio("mae", np.full(8, 0.3), rows, most=2.0)
    assert lost(*errors).value == pytest.approx(5.0)
    assert lost(errors[0], errors[0]) == Interval.around(0.0, 0.0, 0.0)


def beside(size, speed, drop):
    one = Measured(Bytes(1, 1, 1), 1.0, Ratio("accuracy", np.ones(2), np.ones(2)))
    return Beside(one, one, size, speed, Interval.around(drop, drop - 1, drop + 1))


def test_a_promise_holds_where_all_that_it_names_does():
    found = beside(0.5, 2.0, 1.0)
    for target, kept in (
        (Target(size=0.5), True),
        (Target(size=0.49), False),
        (Target(speed=2.0), True),
        (Target(speed=2.1), False),
        (Target(drop=1.0), True),
        (Target(drop=0.9), False),
        (Target(size=0.6, drop=0.5), False),
    ):
        assert target.kept(found) is kept
    assert str(Target(size=0.5, drop=1.0)) == "size=0.5,drop=1"


def test_the_smallest_or_fastest_where_points_are_bounded_else_the_one_that_loses_least():
    small, good = beside(0.2, 2.0, 1.0), beside(0.5, 3.0, 0.1)
    assert min((small, good), key=Target(drop=1.0).order) is small
    assert min((small, good), key=Target(drop=1.0, size=0.5).order) is small
    assert min((small, good), key=Target(drop=1.0, speed=2.0).order) is good
    assert min((small, good), key=Target(size=0.5).order) is good


def test_the_ladder_has_every_way_of_the_table():
    rungs = [[COMPRESSIONS.name_of(one) for one in rung] for rung in ladder(42)]
    assert {name for rung in rungs for name in rung} == set(COMPRESSIONS)
    assert rungs[-2:] == [["narrow", "int8"], ["distill", "int8"]]


def test_a_way_draws_by_the_seed_of_the_command_unless_it_names_its_own():
    assert way("distill:layers=3", 7) == Distill(layers=3, seed=7)
    assert way("distill:layers=3,seed=42", 7) == Distill(layers=3, seed=42)
    assert way("int8", 7) == ToInt8()
    assert {one.seed for rung in ladder(7) for one in rung if not isinstance(one, ToInt8)} == {7}


def test_a_fifth_of_the_rows_measures():
    many = tuple(Example({"text": str(number)}, "neg") for number in range(20_000))
    rows = many[:100]
    learn, held = parts(rows, 1)
    assert len(held) == 20 and sorted(int(row.fields["text"]) for row in (*learn, *held)) == list(range(100))
    assert parts(rows, 1) == (learn, held) != parts(rows, 2)
    assert len(parts(many, 1)[1]) == 2000
    assert parts(rows * 200, 1) == (learn, held)  # a text counts once
    with pytest.raises(DataError, match="at least 20 labelled rows, no two alike, got 19"):
        parts(rows[:19] * 2, 1)
