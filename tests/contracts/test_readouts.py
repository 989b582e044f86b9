"""Every readout of the table on every family: shapes, rows for themselves, candidates in order, finite at extremes."""

from dataclasses import replace

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.families import FAMILIES
from fewtune.prompt.batch import collate, collate_filled, collate_spelled, collate_written
from fewtune.prompt.encode import Row
from fewtune.prompt.spelling import Filling, spell
from fewtune.prompt.verbalizer import WholeWords
from fewtune.readout import READOUTS
from fewtune.readout.channel import Channel
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.similarity import Similarity

SETTINGS = (
    *(Cloze(), Likelihood(), Likelihood(per="token"), Likelihood(per="byte")),
    *(Channel(), Channel(per="token"), Channel(per="word")),
    *(Head(), Head(pool="first", dropout=0.0), Head(pool="mean"), Head(pool="last"), Similarity(), Similarity(pool="first")),
)
WORDS = ((20,), (31, 42, 53), (64, 15))
CASES = [
    pytest.param(family, readout, id=f"{family}-{readout}")
    for family in FAMILIES
    for readout in SETTINGS
    if not (readout.reverses and FAMILIES[family].objective != "causal")  # which gives a text no probability
]


def test_every_readout_is_seen():
    assert len(READOUTS) == 6
    assert {READOUTS.name_of(readout) for readout in SETTINGS} == set(READOUTS) - {"generate"}  # which has test_generation.py


@pytest.fixture(scope="module")
def backbones():
    made = {}
    for family in FAMILIES:
        model, tokenizer = tiny.model(family)
        made[family] = Backbone(model, tokenizer, name=family)
    return made


def reader_of(readout, backbone, *, candidates=3, seed=0):
    reader = readout.install(backbone, candidates=candidates, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for weight in reader.weights.values():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
    return reader


def rows(backbone, lengths=(7, 3, 5, 1)):
    generator = torch.Generator().manual_seed(3)
    drawn = [tuple(torch.randint(10, 120, (length,), generator=generator).tolist()) for length in lengths]
    return [Row(ids, (0,) * len(ids), len(ids) - 1 if backbone.causal else len(ids) // 2) for ids in drawn]


def batch_of(backbone, readout, listed, *, words=WORDS, pad=0):
    """The rows with these words to read; where all tokens of a word are read, some of the words have two."""
    if backbone.seq2seq and readout.needs_slot:
        return written(backbone, readout, listed, words)
    if not readout.spells:
        return collate(listed, pad=pad, words=words)
    if readout.reverses:
        filling = Filling(tuple(tuple((token, token + 1)[: 1 + token % 2] for token in tokens) for tokens in words))
        behind = [replace(row, slot=len(row.ids) // 2, own=tuple(range(len(row.ids) // 2, len(row.ids))), said=1) for row in listed]
        return collate_filled(behind, filling, pad=pad)
    mask = None if backbone.causal else backbone.tokenizer.mask_token_id
    return collate_spelled(listed, (spell(whole(words), causal=backbone.causal),), pad=pad, mask=mask)


def written(backbone, readout, listed, words):
    """What a decoder is given, which has a sentinel behind its start here."""
    behind = [replace(row, slot=1) for row in listed]
    given = {"pad": backbone.tokenizer.pad_token_id, "start": backbone.start, "sentinel": backbone.tokenizer.get_vocab()["<extra_id_0>"]}
    if not readout.spells:
        return collate_written(behind, words=words, **given)
    return collate_written(behind, spellings=(spell(whole(words), causal=False, seq2seq=True),), **given)


def whole(words):
    """Some of them with two tokens."""
    ids = tuple(tuple((token, token + 1)[: 1 + token % 2] for token in tokens) for tokens in words)
    return WholeWords(ids, tuple(tuple(3 * len(word) for word in candidate) for candidate in ids))


def scored(backbone, readout, reader, listed, *, words=WORDS):
    batch = batch_of(backbone, readout, listed, words=words, pad=backbone.tokenizer.pad_token_id or 0)
    with torch.no_grad():
        return reader.scores(backbone.forward(batch.ids_BT, batch.mask_BT, trees=batch.trees, written_BFJ=batch.written_BFJ), batch)


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_scores_are_a_finite_row_of_candidates_for_each_row(backbones, family, readout):
    backbone = backbones[family]
    scores_BC = scored(backbone, readout, reader_of(readout, backbone), rows(backbone))
    assert scores_BC.shape == (4, 3) and scores_BC.dtype == torch.float32
    assert bool(scores_BC.isfinite().all())
    assert len({tuple(row) for row in scores_BC.tolist()}) == 4


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_a_rows_scores_do_not_depend_on_its_neighbours(backbones, family, readout):
    backbone = backbones[family]
    reader, listed = reader_of(readout, backbone), rows(backbone)
    together_BC = scored(backbone, readout, reader, listed)
    alone_BC = torch.cat([scored(backbone, readout, reader, [row]) for row in listed])
    turned_BC = scored(backbone, readout, reader, listed[::-1]).flip(0)
    torch.testing.assert_close(together_BC, alone_BC, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together_BC, turned_BC, atol=1e-5, rtol=1e-5)


def states(backbone, batch):
    """Random ones of the shape that the batch gets, and which of them are no padding's."""
    shape = batch.ids_BT.shape if batch.written_BFJ is None else batch.written_BFJ.flatten(1).shape
    there_BT = batch.mask_BT.bool() if batch.written_BFJ is None else batch.written_BFJ.flatten(1) != backbone.tokenizer.pad_token_id
    return torch.randn(*shape, backbone.width, generator=torch.Generator().manual_seed(4)), there_BT | (torch.arange(shape[1]) == 0)


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_what_stands_in_the_padding_is_not_read(backbones, family, readout):
    backbone = backbones[family]
    reader = reader_of(readout, backbone)
    batch = batch_of(backbone, readout, rows(backbone))
    hidden_BTD, there_BT = states(backbone, batch)
    spoilt_BTD = torch.where(there_BT[:, :, None], hidden_BTD, torch.tensor(1e6))
    with torch.no_grad():
        assert torch.equal(reader.scores(Output(spoilt_BTD), batch), reader.scores(Output(hidden_BTD), batch))


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_the_order_of_the_candidates_is_carried(backbones, family, readout):
    backbone, order = backbones[family], [2, 0, 1]
    listed, reader = rows(backbone), reader_of(readout, backbone)
    scores_BC = scored(backbone, readout, reader, listed)
    for name, weight in reader.weights.items():
        assert weight.shape[0] == 3, name
        with torch.no_grad():
            weight.copy_(weight[order].clone())
    turned_BC = scored(backbone, readout, reader, listed, words=tuple(WORDS[candidate] for candidate in order))
    torch.testing.assert_close(turned_BC, scores_BC[:, order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e6])
@pytest.mark.parametrize(("family", "readout"), CASES)
def test_scores_are_finite_at_extremes(backbones, family, readout, size):
    backbone = backbones[family]
    batch = batch_of(backbone, readout, rows(backbone))
    hidden_BTD = states(backbone, batch)[0] * size
    reader = reader_of(readout, backbone)
    for precision in ("float32", "bfloat16"):
        with torch.no_grad(), backbone.as_precision(precision):
            scores_BC = reader.scores(Output(hidden_BTD), batch)
        assert scores_BC.dtype == torch.float32 and bool(scores_BC.isfinite().all())


@pytest.mark.parametrize(("family", "readout"), CASES)
@pytest.mark.parametrize("candidates", [1, 2, 30])
def test_any_number_of_candidates(backbones, family, readout, candidates):
    backbone = backbones[family]
    words = tuple((10 + number,) for number in range(candidates))
    scores_BC = scored(backbone, readout, reader_of(readout, backbone, candidates=candidates), rows(backbone), words=words)
    assert scores_BC.shape == (4, candidates)


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_only_the_readouts_own_weights_learn(backbones, family, readout):
    backbone, reader = backbones[family], reader_of(readout, backbones[family])
    batch = batch_of(backbone, readout, rows(backbone))
    hidden_BTD = backbone.forward(batch.ids_BT, batch.mask_BT, trees=batch.trees, written_BFJ=batch.written_BFJ).hidden_BTD
    assert not hidden_BTD.requires_grad
    states_BTD = hidden_BTD.clone().requires_grad_()
    reader.scores(Output(states_BTD), batch).square().sum().backward()
    # What is below is reached, so that deltas can learn; the backbone itself is not.
    assert states_BTD.grad is not None and bool(states_BTD.grad.any())
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in reader.weights.values())
    assert all(weight.grad is None for weight in backbone.model.parameters())


@pytest.mark.parametrize("name", [name for name in READOUTS if name != "generate"])
def test_named_drawn_from_its_generator_and_dropout_off(backbones, name):
    readout = READOUTS.from_dict({"name": name})
    assert READOUTS.from_dict(READOUTS.to_dict(readout)) == readout
    assert isinstance(type(readout).needs_slot, bool) and type(readout).learning_rate >= 0
    backbone = backbones["llama" if readout.reverses else "bert"]
    first, again, other = (
        readout.install(backbone, candidates=4, generator=torch.Generator().manual_seed(seed)).weights for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = readout.learning_rate > 0  # what the loop leaves alone starts at zero
    assert not drawn or any(not torch.equal(first[key], other[key]) for key in first)
    reader = reader_of(readout, backbone)
    assert not any(module.training for module in reader.train_mode)
    assert torch.equal(scored(backbone, readout, reader, rows(backbone)), scored(backbone, readout, reader, rows(backbone)))


def test_a_head_pools_what_it_is_told_to():
    model, tokenizer = tiny.model("bert")
    backbone = Backbone(model, tokenizer, name="bert")
    batch = collate(rows(backbone, (3, 2)), pad=0)
    hidden_BTD = torch.randn(2, 3, backbone.width)
    by_hand = {
        "first": torch.stack([hidden_BTD[0, 0], hidden_BTD[1, 0]]),
        "last": torch.stack([hidden_BTD[0, 2], hidden_BTD[1, 1]]),
        "mean": torch.stack([hidden_BTD[0].mean(0), (hidden_BTD[1, 0] + hidden_BTD[1, 1]) / 2]),
    }
    by_hand["auto"] = by_hand["mean"]
    for pool, pooled_BD in by_hand.items():
        reader = reader_of(Head(pool=pool), backbone)
        expected_BC = pooled_BD @ reader.weights["head.weight"].T + reader.weights["head.bias"]
        torch.testing.assert_close(reader.scores(Output(hidden_BTD), batch), expected_BC)


def test_auto_takes_the_last_token_of_autoregressive_models_only(backbones):
    for family, pool in {"bert": "mean", "roberta": "mean", "llama": "last", "gpt2": "last"}.items():
        backbone = backbones[family]
        auto, named = reader_of(Head(), backbone), reader_of(replace(Head(), pool=pool), backbone)
        assert torch.equal(scored(backbone, Head(), auto, rows(backbone)), scored(backbone, Head(), named, rows(backbone)))
