"""A pooler that a folder has is found; one that transformers draws for want of it is no part of the backbone."""

import pytest
import torch

from fewtune.backbone import pooler, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load


def stack_of(family):
    from transformers import AutoModel

    model, tokenizer = tiny.model(family)
    torch.manual_seed(0)
    return AutoModel.from_config(model.config).eval(), tokenizer


def saved(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_folder_with_a_pooler(family, tmp_path):
    stack, tokenizer = stack_of(family)
    stack.config.architectures = [type(stack).__name__]
    name = saved(tmp_path, stack, tokenizer)
    wanted = pooler.of(Backbone(stack, tokenizer, name=family)).weight
    assert torch.equal(pooler.of(load(name)).weight, wanted) and torch.equal(pooler.stored(name).weight, wanted)


def test_a_folder_without_one_gives_the_same_backbone_each_time(tmp_path):
    stack, tokenizer = stack_of("bert")
    stack.pooler = None
    stack.config.architectures = ["BertModel"]
    name = saved(tmp_path, stack, tokenizer)
    once, again = load(name), load(name)
    assert once.fingerprint == again.fingerprint
    assert pooler.of(once) is None and pooler.stored(name) is None


def test_families_without_any():
    model, tokenizer = tiny.model("llama")
    assert pooler.of(Backbone(model, tokenizer, name="llama")) is None
