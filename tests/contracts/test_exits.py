"""Exits in every family: rows that leave and rows that stay get what they would get alone, whatever is installed; off, nothing changes."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.families import FAMILIES
from fewtune.deltas import DELTAS
from fewtune.errors import BackboneError
from fewtune.exits import CRITERIA
from fewtune.exits.cascade import Through, leave, leave_mixed
from fewtune.exits.exits import Exits, mended, rows_of, state
from fewtune.prompt.batch import Batch
from fewtune.readout.calibration import Calibrator
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head

SEEN = list(FAMILIES)
BLOCKS = 4
LENGTHS = (9, 4, 1, 7, 5, 9)
CANDIDATES = 3
"""Unlike any other size here, so that a wrong axis shows."""


def test_every_family_is_seen():
    assert len(SEEN) == 16


def made(family, *, seed=0):
    return Backbone(*tiny.model(family, blocks=BLOCKS, seed=seed), name=f"tiny {family}")


def batch_of(backbone, lengths=LENGTHS, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(10, len(backbone.tokenizer), (len(lengths), max(lengths)), generator=generator)
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids_BT[mask_BT == 0] = backbone.tokenizer.pad_token_id or 0
    types_BT = (torch.arange(max(lengths)) > 2).long().expand_as(ids_BT).contiguous()
    return Batch(ids_BT, mask_BT, types_BT, mask_BT.sum(1) - 1, words=((11,), (12, 13), (14,)))


def alone(batch, row):
    one, length = rows_of(batch, torch.tensor([row])), int(batch.mask_BT[row].sum())
    return Batch(one.ids_BT[:, :length], one.mask_BT[:, :length], one.types_BT[:, :length], one.slot_B, words=one.words)


def through(backbone, batch, *, readout=None, criterion="margin", seed=0, layers=(1, 2, 3), ensemble=False):
    """A way out with exits whose weights are drawn; three rows leave at the first two of them."""
    generator = torch.Generator().manual_seed(seed)
    readout = readout or (Head() if not backbone.causal else Cloze())
    reader = readout.install(backbone, candidates=CANDIDATES, generator=generator)
    calibrator = Calibrator((0.1, 0.0, -0.1), 0.8)
    exits = Exits.install(
        CRITERIA.from_text(criterion),
        layers,
        backbone=backbone,
        reader=reader,
        candidates=CANDIDATES,
        ensemble=ensemble,
    )
    for weight in exits.weights.values():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    read, answers_LBC = looked(backbone, batch, exits)
    sure_BL = exits.sure(answers_LBC, torch.stack(read, 1), calibrator)
    ranked = sure_BL[:, :2].amax(1).sort(descending=True).values
    return Through(reader, calibrator, exits.at(float((ranked[2] + ranked[3]) / 2)))


@torch.no_grad()
def looked(backbone, batch, exits):
    """What each exit reads, and what it answers, of all rows."""
    states = list(backbone.layers(batch.ids_BT, batch.mask_BT, batch.types_BT))
    read = [state(backbone, Output(states[layer], states[layer][:, 0]), batch, exits.place) for layer in exits.layers]
    return read, exits.answers(torch.stack([exits.scores(number, read_BD) for number, read_BD in enumerate(read)]))


@torch.no_grad()
def by_hand(backbone, batch, way):
    """Every layer for every row, and who leaves where: nothing is dropped."""
    exits, depth = way.exits, backbone.depth
    read, answers_LBC = looked(backbone, batch, exits)
    judged_LBC = mended(answers_LBC, way.calibrator)
    done_LB = torch.stack([exits.judge.done(judged_LBC[: number + 1], read_BD) for number, read_BD in enumerate(read)])
    full_BC = way.reader.scores(backbone.forward(batch.ids_BT, batch.mask_BT, batch.types_BT), batch)
    scores, layers = [], []
    for row in range(len(batch)):
        number = next((number for number in range(len(exits.layers)) if done_LB[number, row]), None)
        scores.append(full_BC[row] if number is None else answers_LBC[number, row])
        layers.append(depth if number is None else exits.layers[number])
    return torch.stack(scores), layers


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SEEN)
def test_rows_get_what_they_would_get_alone(family):
    backbone = made(family)
    batch = batch_of(backbone)
    way = through(backbone, batch)
    expected_BC, layers = by_hand(backbone, batch, way)
    assert len(set(layers)) > 1, "all rows leave at one layer, so nothing is shown"
    for compact in (True, False):
        left = leave(backbone, batch, way, compact=compact)
        assert left.layers_B.tolist() == layers
        close(left.scores_BC, expected_BC)
    singles = [leave(backbone, alone(batch, row), way) for row in range(len(batch))]
    assert [int(one.layers_B) for one in singles] == layers
    close(torch.cat([one.scores_BC for one in singles]), left.scores_BC)


@pytest.mark.parametrize("family", SEEN)
def test_off_the_scores_are_the_models_own_to_the_bit(family):
    backbone = made(family)
    batch = batch_of(backbone)
    way = through(backbone, batch)
    with torch.inference_mode():
        own_BC = way.reader.scores(backbone.forward(batch.ids_BT, batch.mask_BT, batch.types_BT), batch)
    off = Through(way.reader, way.calibrator, way.exits.off())
    for one in (off, Through(way.reader, way.calibrator)):
        left = leave(backbone, batch, one)
        assert torch.equal(left.scores_BC, own_BC) and left.layers_B.tolist() == [BLOCKS] * len(batch)


@pytest.mark.parametrize("family", SEEN)
def test_dropping_a_row_leaves_the_others_bits_alone(family):
    backbone = made(family)
    batch = batch_of(backbone)
    kept = torch.tensor([0, 2, 3, 5])
    with torch.inference_mode():
        whole, fewer = (backbone.climb(batch.ids_BT, batch.mask_BT, batch.types_BT) for _ in range(2))
        whole.up()
        fewer.up()
        fewer.keep(kept)
        fewer.keep(torch.arange(4))
        for _ in range(BLOCKS - 1):
            whole.up()
            fewer.up()
    assert torch.equal(fewer.hidden_BTD, whole.hidden_BTD[kept]) and torch.equal(fewer.first_BD, whole.first_BD[kept])


@pytest.mark.parametrize("delta", [*DELTAS])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_with_any_delta_installed(family, delta):
    backbone = made(family)
    try:
        installed = DELTAS.from_dict({"name": delta}).install(backbone, generator=torch.Generator().manual_seed(1))
    except BackboneError:
        pytest.skip(f"{family} cannot carry {delta}")
    generator = torch.Generator().manual_seed(2)
    for weight in installed.weights.values():
        weight.data = weight.data + torch.randn(weight.shape, generator=generator) * 0.02
    batch = batch_of(backbone)
    way = through(backbone, batch, layers=tuple(range(1, backbone.depth)))
    expected_BC, layers = by_hand(backbone, batch, way)
    left = leave(backbone, batch, way)
    assert left.layers_B.tolist() == layers and len(set(layers)) > 1
    close(left.scores_BC, expected_BC)


@pytest.mark.parametrize("criterion", [*CRITERIA])
@pytest.mark.parametrize("ensemble", [False, True])
def test_with_every_criterion_and_ensembles(criterion, ensemble):
    backbone = made("bert")
    batch = batch_of(backbone, tuple(range(2, 12)))
    way = through(backbone, batch, criterion=criterion, ensemble=ensemble)
    way = Through(way.reader, way.calibrator, way.exits.at(1.0)) if criterion == "patience" else way
    expected_BC, layers = by_hand(backbone, batch, way)
    left = leave(backbone, batch, way)
    assert left.layers_B.tolist() == layers and len(set(layers)) > 1
    close(left.scores_BC, expected_BC)


@pytest.mark.parametrize("family", ["bert", "llama", "gemma3_text"])
def test_a_mixed_batch_of_models_with_exits_of_their_own(family):
    backbone = made(family)
    for entry in (0, 1):
        with backbone.installing(entry):
            delta = DELTAS.from_text("lora:rank=2").install(backbone, generator=torch.Generator().manual_seed(entry))
        for weight in delta.weights.values():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(entry + 5)) * 0.1
    batch = batch_of(backbone)
    ways = [
        through(backbone, batch),
        through(backbone, batch, seed=3, layers=(2, 3)),
        Through(through(backbone, batch).reader, Calibrator.identity(3)),
    ]
    numbers = [torch.tensor([0, 3]), torch.tensor([1, 2, 5]), torch.tensor([4])]
    route_B = torch.tensor([0, 1, 1, 0, -1, 1])
    parts = [(way, rows_of(batch, rows_N), rows_N) for way, rows_N in zip(ways, numbers, strict=True)]
    mixed = leave_mixed(backbone, batch, parts, route_B=route_B)
    for (way, own, rows_N), left in zip(parts, mixed, strict=True):
        (solo,) = leave_mixed(backbone, own, [(way, own, torch.arange(len(own)))], route_B=route_B[rows_N])
        assert left.layers_B.tolist() == solo.layers_B.tolist()
        close(left.scores_BC, solo.scores_BC)
    assert len(set(torch.cat([left.layers_B for left in mixed]).tolist())) > 1


def test_entries_that_a_family_cannot_tell_apart_are_refused():
    backbone = made("deberta-v2")
    with backbone.installing(1):
        DELTAS.from_text("lora:rank=2").install(backbone, generator=torch.Generator().manual_seed(0))
    batch = batch_of(backbone)
    with pytest.raises(BackboneError, match="rows of one entry.*a batch of their own"):
        backbone.climb(batch.ids_BT, batch.mask_BT, route_B=torch.tensor([0, 1] * 3))
