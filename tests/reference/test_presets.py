"""Presets against the papers: how many weights on BERT-base, where they stand, and what the first outputs are."""

import pytest
import torch
from transformers import BertConfig, BertModel

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.presets import PRESETS, read
from fewtune.errors import SpecError

WIDTH, INNER, BLOCKS = 768, 3072, 12


@pytest.fixture(scope="module")
def bert_base():
    """BERT-base's shapes (109,482,240 parameters with the pooler) with numbers drawn at random."""
    return Backbone(BertModel(BertConfig()).eval(), tiny.tokenizer("wordpiece"), name="bert-base", fingerprint="shapes only")


def bottleneck(size):
    return 2 * WIDTH * size + size + WIDTH


COUNTS = {
    "lora-paper": BLOCKS * 2 * 8 * 2 * WIDTH,
    "lora-ffn": BLOCKS * (WIDTH + INNER),
    "houlsby": BLOCKS * (2 * bottleneck(64) + 4 * WIDTH),
    "pfeiffer": BLOCKS * bottleneck(48),
    "parallel": BLOCKS * bottleneck(384),
    "scaled-parallel": BLOCKS * bottleneck(384),
    "mam": BLOCKS * (2 * 16 * WIDTH + bottleneck(16)),
    "ia3-paper": BLOCKS * (2 * WIDTH + INNER),
    # The embeddings' norm, each block's seven maps and norms, and the pooler.
    "bitfit": WIDTH + BLOCKS * (4 * WIDTH + INNER + WIDTH + 2 * WIDTH) + WIDTH,
    "lester": 100 * WIDTH,
    "li-liang": BLOCKS * 2 * 5 * WIDTH,
    "p-tuning-v2": BLOCKS * 2 * 20 * WIDTH,
}
PUBLISHED = {
    "lora-paper": 294_912,
    "lora-ffn": 46_080,
    "pfeiffer": 894_528,
    "scaled-parallel": 7_091_712,
    "ia3-paper": 55_296,
    "bitfit": 102_912,
    "p-tuning-v2": 368_640,
}


def test_every_preset_is_counted():
    assert set(COUNTS) == set(PRESETS) and len(PRESETS) == 12
    assert {name: COUNTS[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", PRESETS)
def test_as_many_weights_as_the_paper_says(bert_base, name):
    assert bert_base.parameters == 109_482_240
    installed = []
    for delta in PRESETS[name]:
        installed.append(delta.install(bert_base, generator=torch.Generator().manual_seed(0)))
    try:
        assert sum(one.stored_parameters for one in installed) == COUNTS[name]
    finally:
        for one in reversed(installed):
            one.remove()


def batch():
    ids_BT = torch.randint(10, 120, (3, 6), generator=torch.Generator().manual_seed(1))
    return ids_BT, torch.ones_like(ids_BT)


@pytest.mark.parametrize("name", PRESETS)
def test_first_outputs_are_those_that_the_method_claims(name):
    model, tokenizer = tiny.model("bert")
    backbone = Backbone(model, tokenizer, name="bert")
    with torch.no_grad():
        before = backbone.forward(*batch()).hidden_BTD
        for number, delta in enumerate(PRESETS[name]):
            delta.install(backbone, generator=torch.Generator().manual_seed(number))
        moved = (backbone.forward(*batch()).hidden_BTD - before).abs().max().item()
    if all(delta.unchanged_at_start for delta in PRESETS[name]):
        assert moved <= 1e-6
    elif name == "houlsby":
        assert 0 < moved < 1e-3
    elif name == "pfeiffer":
        assert 0 < moved < 0.1
    else:
        assert moved > 1e-3


def test_houlsbys_weights_are_drawn_as_in_the_paper():
    model, tokenizer = tiny.model("bert", width=64)
    installed = Adapter(size=64, init="houlsby").install(
        Backbone(model, tokenizer, name="bert"), generator=torch.Generator().manual_seed(0)
    )
    for name, weight in installed.weights.items():
        if weight.dim() > 1:
            # A normal cut at two deviations has 0.88 of its deviation.
            assert weight.abs().max() <= 2e-3 and abs(weight.std().item() / 0.88e-3 - 1) < 0.1, name
        else:
            assert not weight.any()


def test_reading_a_flag():
    assert read("houlsby") == PRESETS["houlsby"]
    assert read("none") == ()
    assert read("adapter:size=8,at=attention+ffn") == (Adapter(size=8, at=("attention", "ffn")),)
    with pytest.raises(SpecError, match='got "houlsbi".*Did you mean "houlsby"'):
        read("houlsbi")
    with pytest.raises(SpecError, match="a preset has no fields|A preset has no fields"):
        read("houlsby:size=3")
