"""Fewer layers in every family: what remains is what running these blocks by hand gives, walks and caches agree with it, deltas stand on
it, and it goes without a trace."""

import pytest
import torch

from fewtune.backbone import shorten, tiny, walk
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.backbone.generation import generate
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, SpecError
from fewtune.exits import CRITERIA
from fewtune.exits.exits import Exits
from fewtune.readout.head import Head

DEPTH = 6
KEPT = {"albert": (0, 2, 3, 5)}
"""Two blocks are shared by three steps each, so as many of each remain; of all others steps that leave holes, with the last."""


def made(family):
    return Backbone(*tiny.model(family, blocks=DEPTH), name=f"tiny {family}")


def batch():
    ids_BT = torch.randint(10, 120, (4, 6), generator=torch.Generator().manual_seed(1))
    return ids_BT, (torch.arange(6) < torch.tensor([6, 3, 5, 4])[:, None]).long()


def install(delta, backbone, seed=0):
    return delta.install(backbone, generator=torch.Generator().manual_seed(seed))


def by_hand(backbone, steps, ids_BT, mask_BT):
    """States after each of the steps, in the full model: what each block is given is the full model's own but for the states."""
    calls = walk.record(backbone.stack, backbone.family, backbone._inputs(backbone._pack(ids_BT, mask_BT, None, ())))
    hidden_BTD, carried = calls[0].arguments[0], None
    found = [hidden_BTD]
    for step in steps:
        hidden_BTD, carried = walk.run(backbone.blocks, backbone.family, calls[step], hidden_BTD, carried)
        found.append(hidden_BTD)
    return found


def traces(backbone):
    config = backbone.stack.config
    return (
        {name: id(module) for name, module in backbone.model.named_modules()},
        {name: (id(weight), weight.requires_grad) for name, weight in backbone.model.named_parameters(remove_duplicate=False)},
        [vars(module)["layer_idx"] for module in backbone.model.modules() if "layer_idx" in vars(module)],
        config.to_dict(),
        backbone.order,
        backbone.claims,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_remains_is_these_blocks_run_by_hand_and_goes_without_a_trace(family):
    backbone, (ids_BT, mask_BT) = made(family), batch()
    steps, before = KEPT.get(family, (0, 2, 5)), traces(backbone)
    with torch.no_grad():
        full_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
        expected = by_hand(backbone, steps, ids_BT, mask_BT)
        installed = install(Shallow(steps), backbone)
        assert backbone.depth == len(steps) and installed.first_block == 1 and not installed.weights
        assert len(backbone.order) == len(steps)
        whole = backbone.forward(ids_BT, mask_BT).hidden_BTD
        assert torch.equal(whole, backbone.norm(expected[-1]))
        assert not torch.allclose(whole, full_BTD, atol=1e-3)
        walked = list(backbone.layers(ids_BT, mask_BT))
        assert all(torch.equal(one, other) for one, other in zip(walked, expected, strict=True))
        below_BTD = backbone.below(ids_BT, mask_BT, None, start=1)
        assert torch.equal(backbone.forward(ids_BT, mask_BT, start=1, below_BTD=below_BTD).hidden_BTD, whole)
        climb = backbone.climb(ids_BT, mask_BT)
        for _ in steps:
            climb.up()
        assert torch.equal(backbone.norm(climb.hidden_BTD), whole)
        installed.remove()
        assert traces(backbone) == before
        assert torch.equal(backbone.forward(ids_BT, mask_BT).hidden_BTD, full_BTD)


@pytest.mark.parametrize("family", FAMILIES)
def test_deltas_on_what_remains_store_what_remains(family):
    backbone, (ids_BT, mask_BT) = made(family), batch()
    steps = KEPT.get(family, (0, 2, 5))
    whole = sum(weight.numel() for weight in backbone.model.parameters())
    gone = (
        0 if backbone.family.shared else sum(w.numel() for step in {*range(DEPTH)} - {*steps} for w in backbone.blocks[step].parameters())
    )
    untouched = traces(backbone)
    shallow = install(Shallow(steps), backbone)
    with torch.no_grad():
        plain_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
    every = install(Subset("all"), backbone)
    assert every.stored_parameters == whole - gone
    every.remove()
    lora = install(LoRA(rank=2, sites=("query", "value")), backbone)
    with torch.no_grad():
        assert torch.equal(backbone.forward(ids_BT, mask_BT).hidden_BTD, plain_BTD)
        for weight in lora.weights.values():
            weight += 0.1
        tuned_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
        assert not torch.equal(tuned_BTD, plain_BTD)
        undo = lora.merge()
        torch.testing.assert_close(backbone.forward(ids_BT, mask_BT).hidden_BTD, tuned_BTD, atol=1e-3, rtol=1e-4)
        undo()
    lora.remove()
    last = install(Subset("last"), backbone)
    assert last.first_block == (len(steps) // 2 if backbone.family.shared else len(steps) - 1)
    last.remove()
    shallow.remove()
    assert traces(backbone) == untouched


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "qwen3"])
def test_kept_keys_and_values_are_those_of_the_blocks_that_remain(family):
    """Text that is written with a cache is what is likeliest without one, token by token; a prefix stands in the blocks that remain."""
    backbone = made(family)
    install(Shallow((1, 2, 5)), backbone)
    install(Prefix(length=2), backbone)
    prompt = [20, 31, 42, 53]
    (written,) = generate(backbone, [prompt], most=4, ended=lambda ids: False)
    for number, token in enumerate(written.ids):
        ids_BT = torch.tensor([[*prompt, *written.ids[:number]]])
        with torch.no_grad():
            last_1D = backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD[:, -1]
        assert int(backbone.lm_logits(last_1D, None).argmax()) == token


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shallow_stack_of_a_shallow_stack_and_one_by_number(family):
    backbone = made(family)
    untouched = traces(backbone)
    first = install(Shallow(4), backbone)
    second = install(Shallow(2), backbone)
    assert backbone.depth == 2
    if not backbone.family.shared:
        other = made(family)
        chosen = [other.blocks[step] for step in (0, 5)]
        assert all(
            torch.equal(mine, theirs)
            for block, own in zip(backbone.blocks, chosen, strict=True)
            for mine, theirs in zip(block.parameters(), own.parameters(), strict=True)
        )
    second.remove()
    first.remove()
    assert traces(backbone) == untouched


def test_exits_count_the_layers_that_remain():
    backbone = made("bert")
    install(Shallow(3), backbone)
    reader = Head().install(backbone, candidates=2, generator=torch.Generator().manual_seed(0))
    options = {"backbone": backbone, "reader": reader, "candidates": 2}
    assert Exits.install(CRITERIA.from_text("margin"), (1, 2), **options).layers == (1, 2)
    with pytest.raises(SpecError, match="layers from 1 to 2"):
        Exits.install(CRITERIA.from_text("margin"), (1, 3), **options)


def test_other_models_are_refused_before_and_after():
    backbone = made("bert")
    untouched = traces(backbone)
    with backbone.installing(1):
        other = install(LoRA(rank=1), backbone)
        with pytest.raises(BackboneError, match="expected models that share a PLM, got a model with fewer layers"):
            install(Shallow(3), backbone)
    with pytest.raises(BackboneError, match="expected models that share a PLM"):
        install(Shallow(3), backbone)
    other.remove()
    assert traces(backbone) == untouched
    installed = install(Shallow(3), backbone)
    with pytest.raises(BackboneError, match="a PLM of its own"), backbone.installing(1):
        pass
    with backbone.bare():
        assert backbone.depth == 3
    installed.remove()
    with backbone.installing(1):
        assert backbone.entry == 1


@pytest.mark.parametrize(
    "family, layers, message",
    [
        ("bert", 7, "expected at most 6 layers, got 7"),
        ("bert", (0, 6), "expected some of the steps 0 to 5, from the bottom, got 0, 6"),
        ("bert", (2, 1), "expected some of the steps"),
        ("t5", (1, 5), "whose relative positions all others use"),
        ("albert", (0, 1, 2, 5), "whose blocks are those that a stack of so many steps runs"),
        ("albert", (0, 4, 5), "or take a PLM with one"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason_and_leaves_nothing(family, layers, message):
    backbone = made(family)
    untouched = traces(backbone)
    with pytest.raises(BackboneError, match=message):
        install(Shallow(layers), backbone)
    assert traces(backbone) == untouched


def test_layers_are_at_least_one():
    for layers in (0, (), (-1, 2)):
        with pytest.raises(SpecError, match="shallow.layers"):
            Shallow(layers)


def test_layers_are_spread_from_the_first_to_the_last():
    assert shorten.spread(6, 12) == (0, 2, 4, 7, 9, 11)  # DistilBERT's
    assert shorten.spread(12, 12) == tuple(range(12))
    for depth in range(1, 30):
        for count in range(1, depth + 1):
            steps = shorten.spread(count, depth)
            assert len(set(steps)) == count and list(steps) == sorted(steps) and steps[0] == 0
            assert count == 1 or steps[-1] == depth - 1
