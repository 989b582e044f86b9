"""Prefixes against the `peft` library, against the text that they start from, and against Li & Liang's network written out."""

import warnings

import pytest
import torch

from fewtune.backbone import families, tiny
from fewtune.backbone.attention import NAME
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import NOBODY
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.errors import ArtifactError, BackboneError, SpecError

FAMILIES = ("bert", "roberta", "llama", "gpt2")
REACHED = [name for name, family in families.FAMILIES.items() if family.attention is not None]
CAUSAL = ("gemma", "gpt2", "llama", "qwen2", "qwen3")  # all but Gemma 3, whose windows would lose sight of a text in front
TEXT = "great fun and a joy"
DELTAS = [
    Prefix(length=3),
    Prefix(length=0, text=TEXT),
    Prefix(length=2, text=TEXT, top=0.4),
    Prefix(length=4, zero=True),
    Prefix(length=3, hidden=8),
    Prefix(length=3, hidden=8, zero=True, top=0.7),
]


def made(family, *, double=False):
    model, tokenizer = tiny.model(family)
    return Backbone(model.double() if double else model, tokenizer, name=family)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch():
    ids_BT = torch.randint(10, 90, (3, 6), generator=generator(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    return ids_BT, mask_BT


def forward(backbone, **options):
    return backbone.forward(*batch(), **options).hidden_BTD[batch()[1].bool()]


def aim(hidden_ND):
    return torch.randn(hidden_ND.shape, generator=generator(2))


def moved(installed, seed=5, size=0.3):
    """Weights that training could have led to."""
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=generator(seed + weight.numel())) * size
    return installed


# peft


def with_peft(family, delta_state, length):
    """peft's prefix tuning with the same keys and values: (P, L · 2 · H · E), each block's keys and then its values."""
    from peft import PrefixTuningConfig, get_peft_model

    model, _ = tiny.model(family)
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = {"num_attention_heads": heads, "token_dim": heads * (config.hidden_size // config.num_attention_heads)}
    task = "CAUSAL_LM" if family in CAUSAL else "FEATURE_EXTRACTION"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = PrefixTuningConfig(task_type=task, num_virtual_tokens=length, num_layers=config.num_hidden_layers, **size)
        wrapped = get_peft_model(model if family in CAUSAL else model.base_model, spec).eval()
    flat_PX = torch.stack(list(delta_state.values())).permute(2, 0, 1, 3).flatten(1)
    table_PX = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        table_PX.copy_(flat_PX)
    return wrapped, table_PX


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_peft_in_outputs_and_gradients(family):
    backbone = made(family)
    installed = moved(Prefix(length=4).install(backbone, generator=generator()))
    state = installed.state_dict()
    wrapped, table_PX = with_peft(family, state, 4)
    ids_BT, mask_BT = batch()
    mine = forward(backbone)
    if family in CAUSAL:
        mine = backbone.lm_logits(mine, torch.arange(len(backbone.tokenizer)))
        theirs = wrapped(input_ids=ids_BT, attention_mask=mask_BT).logits[mask_BT.bool()]
    else:
        theirs = wrapped(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[mask_BT.bool()]
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    my_gradients = torch.autograd.grad(mine, list(installed.weights.values()), aim(mine))
    (their_gradient_PX,) = torch.autograd.grad(theirs, [table_PX], aim(mine))
    heads, _, size = my_gradients[0].shape
    expected = their_gradient_PX.view(4, -1, heads, size).permute(1, 2, 0, 3)
    torch.testing.assert_close(torch.stack(my_gradients), expected, atol=1e-4, rtol=1e-4)
    installed.remove()
    untuned = forward(backbone)
    untuned = backbone.lm_logits(untuned, torch.arange(mine.shape[1])) if family in CAUSAL else untuned
    assert (mine - untuned).abs().max() > 1e-2


# Starts


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("length", [0, 3, 13])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_starts_a_causal_model_as_if_it_stood_in_front(family, length, hidden):
    backbone = made(family)
    (ids_BT, mask_BT), text = batch(), backbone.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    text = (text * 3)[: length or len(text)]
    front_BT = torch.tensor([text] * len(ids_BT))
    with torch.no_grad():
        both = backbone.forward(torch.cat([front_BT, ids_BT], 1), torch.cat([torch.ones_like(front_BT), mask_BT], 1))
        installed = Prefix(length=length, text=TEXT, hidden=hidden).install(backbone, generator=generator())
        torch.testing.assert_close(forward(backbone), both.hidden_BTD[:, len(text) :][mask_BT.bool()], atol=1e-5, rtol=1e-5)
        installed.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_text_it_starts_as_drawn_tokens_of_the_vocabulary(family):
    backbone = made(family)
    starts = [Prefix(length=5).install(backbone, generator=generator(seed)) for seed in (0, 0, 1)]
    first, again, other = (installed.state_dict() for installed in starts)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)
    for installed in starts:
        installed.remove()


@pytest.mark.parametrize("delta", [Prefix(length=4, zero=True), Prefix(length=4, zero=True, hidden=8, top=0.4)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_gate_changes_not_one_bit_and_opens_by_training(family, delta):
    backbone = made(family)
    before = forward(backbone)
    installed = delta.install(backbone, generator=generator())
    assert delta.unchanged_at_start and not Prefix().unchanged_at_start
    assert torch.equal(forward(backbone), before)
    optimizer = torch.optim.AdamW(installed.weights.values(), lr=0.01, weight_decay=0.0)
    was = {name: weight.detach().clone() for name, weight in installed.weights.items()}
    for _ in range(2):
        (forward(backbone) * aim(before)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(was[name], weight) for name, weight in installed.weights.items())
    assert not torch.equal(forward(backbone), before)
    installed.remove()


# The network


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_li_and_liangs(family):
    """(P, 2 · L · H · E) = Up tanh(Down E + b) + c, each block's keys and then its values."""
    backbone = made(family)
    installed = moved(Prefix(length=4, hidden=6).install(backbone, generator=generator()))
    weights, state = dict(installed.weights), installed.state_dict()
    hidden_PM = torch.tanh(weights["prefix_network.embedding_PD"] @ weights["prefix_network.down_MD"].T + weights["prefix_network.down_M"])
    up_OM = torch.cat([weight for name, weight in weights.items() if name.endswith("prefix_up_OM")])
    up_O = torch.cat([weight for name, weight in weights.items() if name.endswith("prefix_up_O")])
    heads, length, size = next(iter(state.values())).shape
    made_PX = hidden_PM @ up_OM.T + up_O
    states_XHPE = made_PX.view(length, 2 * backbone.depth, heads, size).permute(1, 2, 0, 3)
    torch.testing.assert_close(torch.stack(list(state.values())), states_XHPE, atol=1e-5, rtol=1e-5)
    assert installed.trained_parameters == hidden_PM.shape[0] * 32 + 6 * 33 + made_PX.shape[1] * 7
    assert installed.stored_parameters == made_PX.numel()
    mine = forward(backbone)
    got = torch.autograd.grad(mine, list(weights.values()), aim(mine))
    installed.remove()
    # The same gradients where keys and values are parameters and the network is the formula above.
    plain = Prefix(length=4).install(backbone, generator=generator())
    plain.load_state_dict(state)
    below = torch.autograd.grad(forward(backbone), list(plain.weights.values()), aim(mine))
    wanted = torch.autograd.grad(states_XHPE, list(weights.values()), torch.stack(below))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    plain.remove()


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_network_only_keys_and_values_are_stored_and_trained_on(family, zero):
    backbone = made(family)
    delta = Prefix(length=3, hidden=8, zero=zero)
    installed = moved(delta.install(backbone, generator=generator()))
    state, tuned = installed.state_dict(), forward(backbone).detach()
    installed.remove()
    untouched = dict(backbone.model.named_parameters())
    assert {name.rpartition(".")[2] for name in state} == {"prefix_key", "prefix_value"} | ({"prefix_gate"} if zero else set())
    again = delta.install(backbone, generator=generator(7))
    assert any(name.startswith("prefix_network") for name in again.weights)
    with pytest.raises(ArtifactError, match="got none"):
        again.load_state_dict({name: state[name] for name in list(state)[1:]})
    assert any(name.startswith("prefix_network") for name in again.weights)
    again.load_state_dict(state)
    assert again.weights.keys() == state.keys() and torch.equal(forward(backbone), tuned)
    assert {id(weight) for weight in backbone.model.parameters() if weight.requires_grad} == {id(w) for w in again.weights.values()}
    gradients = torch.autograd.grad(forward(backbone), list(again.weights.values()), aim(tuned))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    again.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    again.remove()
    after = dict(backbone.model.named_parameters())
    assert after.keys() == untouched.keys() and all(after[name] is untouched[name] for name in after)


# On the stack


def test_every_family_is_reached_or_says_why_not():
    assert len(REACHED) == 14 and set(families.FAMILIES) - set(REACHED) == {"deberta-v2", "mpnet"}
    for name in sorted(set(families.FAMILIES) - set(REACHED)):
        backbone = made(name)
        with pytest.raises(BackboneError, match="which computes attention by itself"):
            Prefix().install(backbone, generator=generator())
        assert backbone.model.config._attn_implementation != NAME


@pytest.mark.parametrize("delta", DELTAS, ids=str)
@pytest.mark.parametrize("family", REACHED)
def test_the_walk_is_the_models_own_forward(family, delta):
    backbone = made(family)
    installed = moved(delta.install(backbone, generator=generator()))
    with torch.no_grad():
        whole, states = forward(backbone), list(backbone.layers(*batch()))
        assert torch.equal(backbone.norm(states[-1])[batch()[1].bool()], whole)
        for start in range(backbone.depth):
            below_BTD = backbone.below(*batch(), None, start=start)
            assert torch.equal(forward(backbone, start=start, below_BTD=below_BTD), whole)
    installed.remove()


@pytest.mark.parametrize("delta", DELTAS, ids=str)
@pytest.mark.parametrize("family", REACHED)
def test_goes_without_a_trace(family, delta):
    backbone = made(family)

    def everything():
        model = backbone.model
        modules = {name: (id(module), sorted(module.__dict__), module.training) for name, module in model.named_modules()}
        return modules, {name: id(weight) for name, weight in model.named_parameters()}, dict(model.config.__dict__)

    before, outputs, room = everything(), forward(backbone), backbone.room
    first = delta.install(backbone, generator=generator())
    assert backbone.model.config._attn_implementation == NAME
    second = LoRA(rank=2).install(backbone, generator=generator(1))
    third = Prefix(length=2).install(backbone, generator=generator(2))
    for installed in (first, third, second):
        installed.remove()
    assert everything() == before and backbone.room == room and torch.equal(forward(backbone), outputs)


@pytest.mark.parametrize("family", REACHED)
def test_rows_of_a_mixed_batch_are_what_they_are_alone(family):
    # In double precision, for in single the order in which a processor adds up shows at 1e-5.
    backbone = made(family, double=True)
    stacks = {
        1: [Prefix(length=2)],
        2: [Prefix(length=7, text=TEXT), LoRA(rank=2)],
        3: [Prefix(length=4, zero=True)],
        4: [SoftPrompt(length=3), Prefix(length=3, top=0.4), Prefix(length=2, zero=True, hidden=4)],
        5: [LoRA(rank=2)],
    }
    for entry, deltas in stacks.items():
        with backbone.installing(entry):
            for number, delta in enumerate(deltas):
                installed = moved(delta.install(backbone, generator=generator(entry)), seed=10 * entry + number)
                for weight in installed.weights.values():
                    weight.data = weight.data.double()
    route_B = torch.tensor([3, 1, NOBODY, 2, 4, 5, 1, 0])
    ids_BT = torch.randint(10, 90, (len(route_B), 9), generator=generator(3))
    lengths = [9, 4, 9, 6, 3, 8, 9, 5]
    mask_BT = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        mixed = backbone.forward(ids_BT, mask_BT, route_B=route_B).hidden_BTD
        walked = backbone.norm(list(backbone.layers(ids_BT, mask_BT, route_B=route_B))[-1])
        alone = []
        for row, length in enumerate(lengths):
            one = backbone.forward(ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length], route_B=route_B[row : row + 1])
            alone.append(one.hidden_BTD[0])
            torch.testing.assert_close(mixed[row, :length], alone[row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(walked[row, :length], alone[row], atol=1e-5, rtol=1e-5)
        plain = made(family, double=True).forward(ids_BT, mask_BT).hidden_BTD
    for row, (length, entry) in enumerate(zip(lengths, route_B.tolist(), strict=True)):
        same = (alone[row] - plain[row, :length]).abs().max() < 1e-5
        assert same == (entry in (NOBODY, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_is_taken_beside_a_prefix(family):
    backbone = made(family)
    most = backbone.max_length
    with backbone.installing(1):
        moved(Prefix(length=9).install(backbone, generator=generator()))
        assert backbone.room == most - 9
    assert backbone.room == most
    ids_BT = torch.randint(10, 120, (2, most), generator=generator(4))
    mask_BT = (torch.arange(most) < torch.tensor([most, most - 9])[:, None]).long()
    with torch.no_grad():
        mixed = backbone.forward(ids_BT, mask_BT, route_B=torch.tensor([NOBODY, 1])).hidden_BTD
        one = backbone.forward(ids_BT[1:, : most - 9], mask_BT[1:, : most - 9], route_B=torch.tensor([1])).hidden_BTD
    torch.testing.assert_close(mixed[1:, : most - 9], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("delta", "left"), [(Prefix(length=9, zero=True), 0), (Prefix(length=9, top=0.4), 0), (Prefix(length=9, hidden=4), 9)]
)
def test_positions_stay_where_blocks_are_to_see_what_they_saw(delta, left):
    backbone = made("gpt2")
    with torch.no_grad():
        before = list(backbone.layers(*batch()))
        installed = moved(delta.install(backbone, generator=generator()))
        after = list(backbone.layers(*batch()))
    assert backbone.max_length - backbone.room == left
    assert torch.equal(before[0], after[0]) == (left == 0)
    assert all(torch.equal(before[block], after[block]) for block in range(1, installed.first_block + 1))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_bfloat16_is_near_float32_and_starts_the_same(family):
    backbone = made(family)
    installed = Prefix(length=4, text=TEXT).install(backbone, generator=generator())
    state, exact = installed.state_dict(), forward(backbone)
    installed.remove()
    with backbone.as_precision("bfloat16"):
        installed = Prefix(length=4, text=TEXT).install(backbone, generator=generator())
        rough = forward(backbone)
        gradients = torch.autograd.grad(rough, list(installed.weights.values()), aim(rough))
    assert all(torch.equal(tensor, state[name]) for name, tensor in installed.state_dict().items())
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    assert not torch.equal(rough, exact) and torch.nn.functional.cosine_similarity(rough, exact, dim=-1).min() > 0.97


def test_a_network_takes_smaller_steps():
    assert Prefix(hidden=8).learning_rate < Prefix(zero=True).learning_rate == Prefix().learning_rate


def test_what_cannot_be_is_refused():
    backbone = made("bert")
    with pytest.raises(SpecError, match="prefix.length: expected at least 1, or a text"):
        Prefix(length=0)
    with pytest.raises(SpecError, match="prefix.top"):
        Prefix(top=0.0)
    with pytest.raises(SpecError, match="prefix.hidden"):
        Prefix(hidden=-1)
    with pytest.raises(SpecError, match="a text with tokens"):
        Prefix(text=" ").install(backbone, generator=generator())
    with pytest.raises(BackboneError, match="less than the 512 positions that are left, got 512"):
        Prefix(length=512).install(backbone, generator=generator())
