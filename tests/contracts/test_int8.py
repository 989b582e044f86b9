"""Eight bits on every family: near the model in full, each row as if it were alone, other deltas on top, and no trace when it goes."""

import copy

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.deltas.int8 import Eight, Int8, stored
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, BackboneError

LENGTHS = (9, 4, 1, 7)


@pytest.fixture(scope="module")
def plain():
    """A backbone of each family, never changed: tests take copies."""
    found = {}
    for family in FAMILIES:
        model, tokenizer = tiny.model(family)
        found[family] = Backbone(model, tokenizer, name=family)
    return found


def batch(backbone):
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(10, len(backbone.tokenizer), (len(LENGTHS), max(LENGTHS)), generator=generator)
    return ids_BT, (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def outputs(backbone, **options):
    ids_BT, mask_BT = batch(backbone)
    with torch.no_grad():
        return backbone.forward(ids_BT, mask_BT, **options).hidden_BTD[mask_BT.bool()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def near(actual, expected, within):
    assert (actual - expected).norm() <= within * expected.norm()


@pytest.mark.parametrize("values", ["own", "stored"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_near_the_model_in_full_and_leaves_no_trace(plain, family, values):
    backbone = copy.deepcopy(plain[family])
    before = outputs(backbone)
    installed = Int8(values).install(backbone, generator=generator())
    after = outputs(backbone)
    assert not torch.equal(after, before)
    near(after, before, 0.15)
    assert installed.trained_parameters == 0
    installed.remove()
    assert torch.equal(outputs(backbone), before)
    assert not any(isinstance(module, Eight) for module in backbone.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_answered_as_if_it_were_alone(plain, family):
    backbone = copy.deepcopy(plain[family])
    Int8().install(backbone, generator=generator())
    ids_BT, mask_BT = batch(backbone)
    with torch.no_grad():
        alone = [
            backbone.forward(ids[:length][None], mask[:length][None]) for ids, mask, length in zip(ids_BT, mask_BT, LENGTHS, strict=True)
        ]
    apart = (torch.cat([one.hidden_BTD[0] for one in alone]) - outputs(backbone)).abs()
    # A last bit of a float decides now and then to which step a number is rounded.
    assert apart.median() < 1e-5
    assert apart.max() < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_stored_is_a_quarter_and_comes_back_to_the_bit(plain, family):
    backbone = copy.deepcopy(plain[family])
    tuned = Subset("all").install(backbone, generator=generator())
    with torch.no_grad():
        for number, weight in enumerate(tuned.weights.values()):
            weight.add_(torch.randn(weight.shape, generator=generator(number)) * 0.02)
    full, state = outputs(backbone), stored(backbone)
    tuned.remove()
    installed = Int8("stored").install(backbone, generator=generator())
    assert {name: tensor.shape for name, tensor in installed.state_dict().items()} == {name: tensor.shape for name, tensor in state.items()}
    installed.load_state_dict(state)
    near(outputs(backbone), full, 0.15)
    assert all(torch.equal(tensor, state[name]) for name, tensor in installed.state_dict().items())
    size = sum(tensor.nbytes for tensor in state.values())
    assert size < 0.35 * 4 * backbone.parameters  # the scales of matrices this narrow take much of it
    name = next(name for name, tensor in state.items() if tensor.dtype == torch.int8)
    with pytest.raises(ArtifactError, match=r"of torch\.int8.*got torch\.float32"):
        installed.load_state_dict({**state, name: state[name].float()})


@pytest.mark.parametrize("values", ["own", "stored"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_measured_comes_back_to_the_bit(plain, family, values):
    backbone = copy.deepcopy(plain[family])
    full, installed = outputs(backbone), Int8(values).install(backbone, generator=generator())
    each = outputs(backbone)
    with installed.measuring():
        outputs(backbone)
    expected = outputs(backbone)
    assert not torch.equal(expected, each)
    near(expected, full, 0.2)
    state, spec = installed.state_dict(), installed.delta
    assert spec == Int8(values, inputs="measured")
    assert {name for name in state if name.endswith(".span")} == {f"{name}.span" for name in installed.maps}
    installed.remove()
    again = spec.install(backbone, generator=generator())
    assert torch.equal(outputs(backbone), each)
    again.load_state_dict(state)
    assert torch.equal(outputs(backbone), expected)
    with backbone.installing(7):  # others are measured apart, and share what was rounded
        others = Int8(values).install(backbone, generator=generator())
    assert torch.equal(outputs(backbone, route_B=torch.full((len(LENGTHS),), 7)), each)
    assert all((own.values_OI is again.maps[name].values_OI) == (values == "own") for name, own in others.maps.items())
    assert torch.equal(outputs(backbone), expected)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_other_deltas_learn_on_top(plain, family):
    backbone = copy.deepcopy(plain[family])
    Int8().install(backbone, generator=generator())
    alone = outputs(backbone)
    lora = LoRA(rank=2, sites=("query", "value", "ffn_out")).install(backbone, generator=generator(1))
    assert torch.equal(outputs(backbone), alone)
    ids_BT, mask_BT = batch(backbone)
    backbone.forward(ids_BT, mask_BT).hidden_BTD.pow(2).mean().backward()
    assert all(weight.grad is not None for weight in lora.weights.values())
    assert any(weight.grad.abs().sum() > 0 for weight in lora.weights.values())
    prefix = Prefix(length=2).install(backbone, generator=generator(2))
    assert not torch.equal(outputs(backbone), alone)
    prefix.remove()
    lora.remove()
    assert torch.equal(outputs(backbone), alone)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "deberta-v2"])
def test_tasks_share_what_was_made_of_the_weights_and_each_row_of_a_batch_has_its_own(plain, family):
    backbone = copy.deepcopy(plain[family])
    solo = {0: outputs(backbone)}
    for entry in (1, 2, 3):
        with backbone.installing(entry):
            if entry < 3:
                Int8().install(backbone, generator=generator())
            lora = LoRA(rank=2).install(backbone, generator=generator(entry))
        with torch.no_grad():
            for weight in lora.weights.values():
                weight.add_(torch.randn(weight.shape, generator=generator(entry)) * 0.3)
        solo[entry] = outputs(backbone, route_B=torch.full((4,), entry))
    maps = {id(module.own) for module in backbone.model.modules() if isinstance(module, Eight)}
    assert len(maps) == len({site.path for name in ("attention_in", "attention_out", "ffn_in", "ffn_out") for site in backbone.sites(name)})
    row_of = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    for route in ([1, 2, 1, 2], [0, 1, 2, 3], [3, 3, 1, 1]):
        mixed = outputs(backbone, route_B=torch.tensor(route))
        for row, entry in enumerate(route):
            apart = (mixed - solo[entry])[row_of == row].abs()
            assert apart.median() < 1e-5
            assert apart.max() < 0.2


@pytest.mark.slow
def test_weights_of_another_delta_are_refused(plain):
    backbone = copy.deepcopy(plain["bert"])
    Subset("last").install(backbone, generator=generator())
    with pytest.raises(BackboneError, match="another delta's in their place.*compress --by int8"):
        Int8().install(backbone, generator=generator())
    with pytest.raises(BackboneError, match="change of weights, got Int8"):
        Int8().install(copy.deepcopy(plain["bert"]), generator=generator()).merge()


def test_weights_of_its_own_that_a_later_delta_has_are_computed_in_full(plain):
    backbone = copy.deepcopy(plain["bert"])
    full = outputs(backbone)
    Int8().install(backbone, generator=generator())
    Subset("all").install(backbone, generator=generator())
    torch.testing.assert_close(outputs(backbone), full)


def test_what_was_tuned_whole_is_not_trained_again_from_the_weights_of_the_plm(plain):
    backbone = copy.deepcopy(plain["bert"])
    Int8("stored").install(backbone, generator=generator())
    with pytest.raises(BackboneError, match="none in bert that no other delta trains"):
        Subset("last").install(backbone, generator=generator())
