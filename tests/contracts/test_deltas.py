"""Every delta of the table on every family: starts as the model was, trains only its own, and goes without a trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.deltas import DELTAS
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, BackboneError

LINEAR = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
SETTINGS = (
    LoRA(rank=2),
    LoRA(rank=3, alpha=1.5, sites=LINEAR),
    LoRA(rank=1, dropout=0.5, sites=("key", "ffn_out"), top=1 / 3),
    LoRA(ranks=(1, 3), sites=("attention_in", "ffn_in"), rslora=True, init="gaussian"),
    LoRA(rank=2, sites=("attention_in", "ffn_out"), dora=True),
    Adapter(size=4, at=("attention", "ffn")),
    Adapter(size=3, at=("attention", "ffn"), parallel=True, scale=4.0, learned_scale=True),
    Adapter(size=5, activation="gelu", top=1 / 3),
    IA3(),
    IA3(outputs=("query", "attention_out"), inputs=("ffn_in",), top=1 / 3),
    SoftPrompt(length=3),
    Subset("all"),
    Subset("biases"),
    Subset("norms"),
    Subset("last", blocks=2),
    Subset("none"),
)
CASES = [
    pytest.param(family, delta, id=f"{family}-{delta}")
    for family in FAMILIES
    for delta in SETTINGS
    if (family, delta) != ("llama", Subset("biases"))  # it has none
]


def test_every_delta_and_family_is_seen():
    assert len(DELTAS) == 5 and {DELTAS.name_of(delta) for delta in SETTINGS} == set(DELTAS)
    assert len(FAMILIES) == 4 and len(CASES) == 4 * len(SETTINGS) - 1


def made(family):
    model, tokenizer = tiny.model(family)
    return Backbone(model, tokenizer, name=family)


@pytest.fixture(scope="module")
def backbones():
    return {family: made(family) for family in FAMILIES}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch():
    ids_BT = torch.randint(10, 120, (3, 6), generator=generator(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    return ids_BT, mask_BT


def outputs(backbone):
    """The LM head's logits everywhere, so that every weight of the model has a say in them."""
    ids_BT, mask_BT = batch()
    hidden_ND = backbone.forward(ids_BT, mask_BT).hidden_BTD[mask_BT.bool()]
    return backbone.lm_logits(hidden_ND, torch.arange(120))


def snapshot(backbone):
    """Everything a trace could be left in: the modules, the parameters, which of them take gradients, their bits, and the modes."""
    model = backbone.model
    return (
        {name: id(module) for name, module in model.named_modules()},
        {name: (id(weight), weight.requires_grad, weight.grad) for name, weight in model.named_parameters(remove_duplicate=False)},
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: module.training for name, module in model.named_modules()},
    )


def assert_untouched(backbone, before):
    after = snapshot(backbone)
    assert after[0] == before[0] and after[1] == before[1] and after[3] == before[3]
    assert after[2].keys() == before[2].keys()
    assert all(torch.equal(after[2][name], tensor) for name, tensor in before[2].items())


def scatter(installed, seed=5):
    """Weights that training could have led to."""
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=generator(seed)) * 0.1


def train(backbone, weights, *, steps=2):
    aim = torch.randint(120, (14,), generator=generator(2))
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(outputs(backbone), aim).backward()
        optimizer.step()
        for weight in weights:
            assert weight.grad is not None
        optimizer.zero_grad()


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_starts_as_the_model_was(backbones, family, delta):
    backbone = backbones[family]
    with torch.no_grad():
        before = outputs(backbone)
        installed = delta.install(backbone, generator=generator())
        after = outputs(backbone)
        installed.remove()
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_only_its_weights_are_trained_and_all_of_them_move(backbones, family, delta):
    backbone = backbones[family]
    untouched = snapshot(backbone)
    installed = delta.install(backbone, generator=generator())
    weights = dict(installed.weights)
    taking = {id(weight) for weight in backbone.model.parameters() if weight.requires_grad}
    assert taking == {id(weight) for weight in weights.values()}
    before, frozen = (
        installed.state_dict(),
        [(weight, weight.clone()) for weight in backbone.model.parameters() if not weight.requires_grad],
    )
    if weights:
        train(backbone, list(weights.values()))
    assert all(not torch.equal(before[name], weight) for name, weight in weights.items())
    assert all(torch.equal(weight, was) and weight.grad is None for weight, was in frozen)
    installed.remove()
    assert_untouched(backbone, untouched)


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_no_graph_is_kept_below_the_first_trained_block(backbones, family, delta):
    backbone = backbones[family]
    installed = delta.install(backbone, generator=generator())
    states = list(backbone.layers(*batch()))
    installed.remove()
    first = installed.first_block
    assert 0 <= first <= backbone.depth
    below = states[: first + 1] if first else []  # with all blocks trained the embeddings may be, too
    assert not any(hidden_BTD.requires_grad for hidden_BTD in below)
    assert all(hidden_BTD.requires_grad for hidden_BTD in states[first + 1 :])


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_no_block_below_the_first_is_changed(backbones, family, delta):
    backbone = backbones[family]
    with torch.no_grad():
        before = list(backbone.layers(*batch()))
        installed = delta.install(backbone, generator=generator())
        scatter(installed)
        after = list(backbone.layers(*batch()))
    installed.remove()
    first = installed.first_block
    assert all(torch.equal(before[block], after[block]) for block in (range(first + 1) if first else ()))
    assert all(not torch.equal(before[block], after[block]) for block in range(first + 1, backbone.depth + 1))


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_saved_weights_give_the_same_outputs_again(backbones, family, delta):
    backbone = backbones[family]
    with torch.no_grad():
        untuned = outputs(backbone)
        first = delta.install(backbone, generator=generator())
        scatter(first)
        state, expected = first.state_dict(), outputs(backbone)
        first.remove()
        second = delta.install(backbone, generator=generator(99))
        second.load_state_dict(state)
        again = outputs(backbone)
        second.remove()
        assert torch.equal(again, expected)
        assert bool(state) == (not torch.equal(expected, untuned))
        assert torch.equal(outputs(backbone), untuned)


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_missing_extra_and_misshapen_weights_are_refused(backbones, family, delta):
    backbone = backbones[family]
    installed = delta.install(backbone, generator=generator())
    state = installed.state_dict()
    try:
        with pytest.raises(ArtifactError, match='here: expected only tensors of this artifact, got "another"'):
            installed.load_state_dict({**state, "another": torch.zeros(1)}, where="here")
        for name in list(state)[:1]:
            with pytest.raises(ArtifactError, match="got none"):
                installed.load_state_dict({other: state[other] for other in state if other != name})
            with pytest.raises(ArtifactError, match="shape"):
                installed.load_state_dict({**state, name: torch.zeros(1, *state[name].shape)})
        assert all(torch.equal(weight, state[name]) for name, weight in installed.weights.items())
    finally:
        installed.remove()


def lora_formula(delta, config):
    width, heads, gated = config.hidden_size, config.num_attention_heads, config.model_type == "llama"
    keys = width // heads * getattr(config, "num_key_value_heads", heads)
    inner = 4 * width
    both = {"query": 2 * width, "key": width + keys, "value": width + keys, "attention_out": 2 * width, "ffn_out": inner + width}
    both["ffn_in"] = (width + inner) * (2 if gated else 1)
    return delta.rank * sum(both[site] for site in delta.sites) * max(1, round(config.num_hidden_layers * delta.top))


def subset_formula(delta, backbone):
    width, depth = backbone.width, backbone.depth
    own = dict(backbone.model.named_parameters())
    return {
        "all": sum(weight.numel() for weight in own.values()),
        "biases": sum(weight.numel() for name, weight in own.items() if name.split(".")[-1] == "bias"),
        # Two in a block, one more at the end of a pre-norm stack; a scale each, and a shift but for Llama's.
        "norms": {"llama": (2 * depth + 1) * width, "gpt2": (2 * depth + 1) * 2 * width}.get(backbone.name, 4 * depth * width),
        "last": sum(weight.numel() for block in backbone.blocks[-delta.blocks :] for weight in block.parameters()),
        "none": 0,
    }[delta.part]


@pytest.mark.parametrize(("family", "delta"), CASES)
def test_as_many_weights_are_trained_as_the_formula_says(backbones, family, delta):
    backbone = backbones[family]
    expected = lora_formula(delta, backbone.model.config) if isinstance(delta, LoRA) else subset_formula(delta, backbone)
    installed = delta.install(backbone, generator=generator())
    assert installed.trained_parameters == expected == sum(tensor.numel() for tensor in installed.state_dict().values())
    installed.remove()


BELOW = (LoRA(rank=1, sites=("query", "ffn_in")), Subset("norms"))


@pytest.mark.parametrize(("family", "delta"), [case for case in CASES if case.values[1] not in BELOW])
@pytest.mark.parametrize("below", BELOW)
def test_stacks_on_another(backbones, family, delta, below):
    backbone = backbones[family]
    untouched = snapshot(backbone)
    with torch.no_grad():
        untuned = outputs(backbone)
    first = below.install(backbone, generator=generator())
    second = delta.install(backbone, generator=generator(1))
    mine = {id(weight) for weight in second.weights.values()}
    theirs = {id(weight) for weight in first.weights.values()}
    assert not mine & theirs
    with torch.no_grad():
        torch.testing.assert_close(outputs(backbone), untuned, atol=1e-6, rtol=0)
    # Both are in the forward and both learn.
    before = [first.state_dict(), second.state_dict()]
    train(backbone, [*first.weights.values(), *second.weights.values()])
    for installed, was in zip((first, second), before, strict=True):
        assert all(not torch.equal(was[name], weight) for name, weight in installed.weights.items())
    # Both are in what is saved.
    states, expected = [first.state_dict(), second.state_dict()], outputs(backbone).detach()
    second.remove()
    first.remove()
    assert_untouched(backbone, untouched)
    first = below.install(backbone, generator=generator(7))
    second = delta.install(backbone, generator=generator(8))
    first.load_state_dict(states[0])
    second.load_state_dict(states[1])
    assert torch.equal(outputs(backbone), expected)
    second.remove()
    first.remove()
    assert_untouched(backbone, untouched)


def test_a_part_that_the_model_lacks_is_refused(backbones):
    untouched = snapshot(backbones["llama"])
    with pytest.raises(BackboneError, match="expected biases to train"):
        Subset("biases").install(backbones["llama"], generator=generator())
    with pytest.raises(BackboneError, match="at most 3 blocks"):
        Subset("last", blocks=4).install(backbones["bert"], generator=generator())
    with pytest.raises(BackboneError, match='name of a site, got "queri".*Did you mean "query"'):
        LoRA(sites=("queri",)).install(backbones["llama"], generator=generator())
    assert_untouched(backbones["llama"], untouched)


def test_a_part_that_is_trained_already_is_refused(backbones):
    untouched = snapshot(backbones["bert"])
    first = Subset("norms").install(backbones["bert"], generator=generator())
    with pytest.raises(BackboneError, match="none in bert that no other delta trains"):
        Subset("norms").install(backbones["bert"], generator=generator())
    first.remove()
    assert_untouched(backbones["bert"], untouched)


def test_the_draw_is_the_generators_alone(backbones):
    def drawn(seed):
        installed = LoRA(rank=2).install(backbones["bert"], generator=generator(seed))
        installed.remove()
        return installed.state_dict()

    torch.manual_seed(0)
    first, before = drawn(3), torch.get_rng_state()
    again = drawn(3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(tensor, first[name]) for name, tensor in drawn(4).items())


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(list(FAMILIES)),
    moves=st.lists(st.one_of(st.none(), st.tuples(st.sampled_from(SETTINGS), st.integers(0, 2**31))), max_size=8),
)
def test_install_and_remove_in_any_order_leave_no_trace(family, moves):
    """`None` takes the uppermost delta away; each time the backbone is what it was before that delta, to the bit."""
    backbone, stack = made(family), []

    def take_away():
        installed, before = stack.pop()
        installed.remove()
        assert_untouched(backbone, before)

    for move in moves:
        if move is None:
            if stack:
                take_away()
            continue
        before = snapshot(backbone)
        try:
            installed = move[0].install(backbone, generator=generator(move[1]))
        except BackboneError:  # nothing is left to train
            assert_untouched(backbone, before)
            continue
        scatter(installed)
        stack.append((installed, before))
    while stack:
        take_away()
