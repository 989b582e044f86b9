"""The loss of pre-training against transformers' own models, which are given the same blocks with labels; the held-out loss, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.corpus import Blocks
from fewtune.strategies.pretrain import Language

IGNORED = -100


def language(family):
    backbone = Backbone(*tiny.model(family), name=family)
    random = np.random.default_rng(0)
    special = set(backbone.tokenizer.all_special_ids)
    ordinary = [token for token in range(len(backbone.tokenizer)) if token not in special]
    blocks = Blocks(random.choice(ordinary, 400).astype(np.uint16), 16, (ordinary[0],), (ordinary[1],), pad=0, period=5, held=2)
    return Language(backbone, blocks, 4, seed=1, whole_words=not backbone.causal)


def expected(learned, drawn):
    """transformers' loss of a batch, and how many predictions it is the mean of."""
    mask_BT, asked = drawn
    if learned.backbone.causal:
        labels = asked.ids_BT.masked_fill(mask_BT == 0, IGNORED)
    else:
        labels = torch.full_like(asked.ids_BT, IGNORED).flatten()
        labels[asked.places_N] = asked.targets_N
        labels = labels.view_as(asked.ids_BT)
    plain, _ = tiny.model(learned.backbone.model.config.model_type)
    return plain(input_ids=asked.ids_BT, attention_mask=mask_BT, labels=labels).loss, len(asked.targets_N)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_loss_equals_that_of_transformers(family):
    learned = language(family)
    with torch.no_grad():
        for drawn in (learned.at(0), learned.at(7)):
            torch.testing.assert_close(learned.loss(drawn), expected(learned, drawn)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_held_out_loss_is_the_mean_over_all_predictions(family):
    learned = language(family)
    with torch.no_grad():
        parts = [expected(learned, drawn) for drawn in learned.held_out()]
    mean = sum(loss.item() * count for loss, count in parts) / sum(count for _, count in parts)
    assert len(parts) > 1 and learned.judged() == pytest.approx(mean, abs=1e-5)
    assert learned.judged() == learned.judged()


def test_batches_are_a_function_of_their_number_and_differ_in_masks_from_epoch_to_epoch():
    learned = language("bert")
    each = learned.blocks.trained
    epoch = [learned.at(number) for number in range(each)]  # four epochs: four blocks a batch
    again = language("bert").at(3)[1]
    assert torch.equal(epoch[3][1].ids_BT, again.ids_BT) and torch.equal(epoch[3][1].places_N, again.places_N)
    hidden = {tuple(asked.targets_N.tolist()) for _, asked in epoch}
    assert len(hidden) == each


def test_more_may_be_masked_while_learning_but_judging_stays_the_same():
    usual, more = language("bert"), replace(language("bert"), masked=0.5)
    assert [len(asked.targets_N) for _, asked in (usual.at(0), more.at(0))] == [4 * 2, 4 * 8]  # of 16 tokens in each of 4 blocks
    for (_, ours), (_, theirs) in zip(usual.held_out(), more.held_out(), strict=True):
        assert torch.equal(ours.ids_BT, theirs.ids_BT) and torch.equal(ours.places_N, theirs.places_N)
