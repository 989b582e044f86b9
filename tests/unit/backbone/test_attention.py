"""Keys and values in front: the attention function against the softmax written out, in whole models, and switched on and off."""

import copy

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel, T5EncoderModel
from transformers.masking_utils import sdpa_mask

from fewtune.backbone.attention import NAME, KeyValues, Prefixes, Stored, attend
from fewtune.backbone.bank import NOBODY, Routing

ROWS, TOKENS, SIZE = 3, 5, 8


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    """As much of an attention module as transformers' function looks at."""

    def __init__(self, *, is_causal, groups=1):
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, groups


class Model(nn.Module):
    """A model of one attention, to hang prefixes on."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.config = AutoConfig.for_model("bert")
        self.config._attn_implementation = "sdpa"

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name


def softmax_attention(query, key, value, seen, *, bias=0.0, scale):
    """softmax(q kᵀ · scale + bias) v over the keys that are seen; (B, Q, heads, E)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scale + bias
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def by_hand(query, key, value, seen, prefixes, *, bias=None, scale=0.3):
    """Row by row: every query sees the prefix, a gated one is mixed in."""
    rows = []
    for row, own in enumerate(prefixes):
        parts = (query[row : row + 1], key[row : row + 1], value[row : row + 1], seen[row : row + 1])

        def out(fronts, parts=parts):
            query, key, value, seen = parts
            length = sum(front.source.key_HPE.shape[1] for front in fronts)
            key = torch.cat([*(front.source.key_HPE[None] for front in fronts), key], 2)
            value = torch.cat([*(front.source.value_HPE[None] for front in fronts), value], 2)
            widened = torch.cat([torch.ones(1, 1, TOKENS, length, dtype=torch.bool), seen], -1)
            wide = 0.0 if bias is None else torch.cat([torch.zeros(1, query.shape[1], TOKENS, length), bias], -1)
            return softmax_attention(query, key, value, widened, bias=wide, scale=scale)

        plain = [front for front in own if front.gate_G is None]
        without = mixed = out(plain)
        for front in own:
            if front.gate_G is not None:
                mixed = mixed + torch.tanh(front.gate_G)[:, None] * (out([*plain, front]) - without)
        rows.append(mixed)
    return torch.cat(rows)


def prefix(heads, length, *, seed, gates=0):
    gate_G = drawn(gates, seed=seed + 100) if gates else None
    return KeyValues(Stored(drawn(heads, length, SIZE, seed=seed), drawn(heads, length, SIZE, seed=seed + 50)), gate_G)


def masks(kind, causal):
    """(what the function is given, what may be seen_B1QK)."""
    lengths = torch.full((ROWS,), TOKENS) if kind == "none" else torch.tensor([5, 2, 4])
    seen = (torch.arange(TOKENS) < lengths[:, None])[:, None, None].expand(-1, 1, TOKENS, -1)
    if causal:
        seen = seen & torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    if kind == "none":
        return None, seen
    if kind == "float":
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min), seen
    return seen, seen


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kind", "causal"), [("none", False), ("none", True), ("bool", False), ("bool", True), ("float", True)])
@pytest.mark.parametrize("groups", [1, 2])
def test_is_the_softmax_over_prefix_and_tokens(kind, causal, groups, bias, mixed):
    heads = 2
    model, routing = Model(Attention(is_causal=causal, groups=groups)), Routing()
    query = drawn(ROWS, heads * groups, TOKENS, SIZE, seed=1).requires_grad_()
    key, value = drawn(ROWS, heads, TOKENS, SIZE, seed=2), drawn(ROWS, heads, TOKENS, SIZE, seed=3)
    held = {
        4: [prefix(heads, 3, seed=4), prefix(heads, 2, seed=5, gates=heads * groups), prefix(heads, 1, seed=6, gates=heads * groups)],
        7: [prefix(heads, 4, seed=7), prefix(heads, 1, seed=8)],
        8: [prefix(heads, 2, seed=9, gates=heads * groups)],
        NOBODY: [],
    }
    prefixes = Prefixes(model, routing)
    for entry, own in held.items():
        for front in own:
            prefixes.put({"attention": front}, entry=entry, shift=0)
    mask, seen = masks(kind, causal)
    position_bias = drawn(1, heads * groups, TOKENS, TOKENS, seed=9) if bias else None
    for route in ([7, NOBODY, 4], [8, NOBODY, NOBODY]) if mixed else ([4] * ROWS, [7] * ROWS, [8] * ROWS, [NOBODY] * ROWS):
        with routing.of(torch.tensor(route)):
            out, _ = attend(model.attention, query, key, value, mask, scaling=0.3, position_bias=position_bias)
        expected = by_hand(query, key, value, seen, [held[entry] for entry in route], bias=position_bias)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        weights = [query, *(weight for entry in set(route) for front in held[entry] for weight in front.parameters())]
        aim = drawn(*out.shape, seed=11)
        for got, wanted in zip(torch.autograd.grad(out, weights, aim), torch.autograd.grad(expected, weights, aim), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_single_query_sees_the_prefix_and_itself():
    model, routing = Model(Attention(is_causal=True)), Routing()
    front = prefix(2, 3, seed=0)
    Prefixes(model, routing).put({"attention": front}, entry=0, shift=0)
    query, key, value = (drawn(1, 2, 1, SIZE, seed=seed) for seed in (1, 2, 3))
    out, _ = attend(model.attention, query, key, value, None, scaling=0.3)
    keys, values = torch.cat([front.source.key_HPE[None], key], 2), torch.cat([front.source.value_HPE[None], value], 2)
    expected = softmax_attention(query, keys, values, torch.ones(1, 1, 1, 4, dtype=torch.bool), scale=0.3)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


# Whole models


def written_out(module, query, key, value, attention_mask, *, scaling=None, position_bias=None, is_causal=None, **options):
    """An attention function of our own, with the module's prefix in front, that shares no code with the one under test."""
    length = module.front.source.key_HPE.shape[1] if hasattr(module, "front") else 0
    queries, tokens = query.shape[2], key.shape[2]
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = torch.ones(queries, tokens, dtype=torch.bool)[None, None]
        attention_mask = attention_mask.tril() if causal else attention_mask
    assert attention_mask.dtype == torch.bool
    if length:
        key = torch.cat([module.front.source.key_HPE.expand(len(key), -1, -1, -1), key], 2)
        value = torch.cat([module.front.source.value_HPE.expand(len(value), -1, -1, -1), value], 2)
    seen = nn.functional.pad(attention_mask, (length, 0), value=True)
    bias = 0.0 if position_bias is None else nn.functional.pad(position_bias, (length, 0))
    return softmax_attention(query, key, value, seen, bias=bias, scale=query.shape[-1] ** -0.5 if scaling is None else scaling), None


SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 90}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
GROUPED = {**SHAPE, **ENDS, "num_key_value_heads": 2, "head_dim": 8}
DISTILBERT = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 90}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 90}
# Shape, where the attention of each block is, and how many blocks have one of their own.
MODELS = {
    "distilbert": (DISTILBERT, "transformer.layer.{}.attention", 3),
    "albert": ({**SHAPE, "embedding_size": 16}, "encoder.albert_layer_groups.{}.albert_layers.0.attention", 1),
    "electra": ({**SHAPE, "embedding_size": 16}, "encoder.layer.{}.attention.self", 3),
    "t5": (T5, "encoder.block.{}.layer.0.SelfAttention", 3),
    "modernbert": ({**SHAPE, **ENDS, "local_attention": 4, "global_attn_every_n_layers": 2}, "layers.{}.attn", 3),
    "qwen3": (GROUPED, "layers.{}.self_attn", 3),
    "gemma3_text": ({**GROUPED, "sliding_window": 4, "sliding_window_pattern": 2}, "layers.{}.self_attn", 3),
}


def built(family):
    shape, path, blocks = MODELS[family]
    config = AutoConfig.for_model(family, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (T5EncoderModel if family == "t5" else AutoModel.from_config)(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.2)
    return model.eval(), [path.format(block) for block in range(blocks)]


def batch():
    ids_BT = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    return ids_BT, (torch.arange(9) < torch.tensor([9, 4, 6])[:, None]).long()


def states(model, ids_BT, mask_BT):
    with torch.no_grad():
        return model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[mask_BT.bool()]


@pytest.mark.parametrize("family", MODELS)
def test_a_whole_model_is_what_it_is_with_the_softmax_written_out(family):
    model, paths = built(family)
    before = states(model, *batch())
    prefixes, kept = Prefixes(model, Routing()), copy.deepcopy(model.config.__dict__)
    with prefixes.seeing(paths) as seen:
        assert torch.equal(states(model, *batch()), before)
    fronts = {path: prefix(notes[0].key_BHKE.shape[1], 3, seed=number) for number, (path, notes) in enumerate(seen.items())}
    undo = prefixes.put(fronts, entry=0, shift=0)
    ours = states(model, *batch())
    full = states(model, batch()[0], torch.ones_like(batch()[0]))  # without padding the model may leave the mask out
    undo()
    assert model.config.__dict__ == kept and torch.equal(states(model, *batch()), before)

    AttentionInterface.register("written_out", written_out)
    AttentionMaskInterface.register("written_out", sdpa_mask)
    model.set_attn_implementation("written_out")
    for path, front in fronts.items():
        model.get_submodule(path).front = front
    torch.testing.assert_close(ours, states(model, *batch()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(full, states(model, batch()[0], torch.ones_like(batch()[0])), atol=1e-5, rtol=1e-5)
    assert (ours - before).abs().max() > 1e-2


# The switch


def test_the_function_is_switched_on_with_the_first_and_off_with_the_last_in_any_order():
    model, paths = built("electra")
    prefixes, names = Prefixes(model, Routing()), {name: id(module) for name, module in model.named_modules()}
    attributes = {path: dict(model.get_submodule(path).__dict__) for path in paths}
    undo = [prefixes.put({path: prefix(4, 2, seed=entry) for path in paths}, entry=entry, shift=3) for entry in range(3)]
    assert model.config._attn_implementation == NAME and prefixes.shift(1) == 3
    for number in (0, 2):
        undo[number]()
        assert model.config._attn_implementation == NAME and prefixes.shift(number) == 0
    undo[1]()
    assert model.config._attn_implementation == "sdpa" and prefixes.shifts == []
    assert {name: id(module) for name, module in model.named_modules()} == names
    assert {path: dict(model.get_submodule(path).__dict__) for path in paths} == attributes


def test_a_model_that_was_set_to_another_function_gets_that_one_back():
    model, paths = built("electra")
    model.set_attn_implementation("eager")
    before = states(model, *batch())
    undo = Prefixes(model, Routing()).put({paths[1]: prefix(4, 2, seed=0)}, entry=5, shift=0)
    torch.testing.assert_close(states(model, *batch()), before, atol=1e-5, rtol=1e-5)
    undo()
    assert model.config._attn_implementation == "eager" and torch.equal(states(model, *batch()), before)


def test_nothing_is_left_of_looking_on_after_an_error():
    model, paths = built("electra")
    attributes = dict(model.get_submodule(paths[0]).__dict__)
    with pytest.raises(RuntimeError), Prefixes(model, Routing()).seeing(paths):
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa" and dict(model.get_submodule(paths[0]).__dict__) == attributes


def test_positions_move_on_row_by_row_and_padding_stays_within_the_models():
    routing = Routing()
    prefixes = Prefixes(Model(Attention(is_causal=True)), routing)
    mask_BS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert prefixes.positions(mask_BS, first=0) is None
    prefixes.put({"attention": prefix(2, 3, seed=0)}, entry=1, shift=3)
    prefixes.put({"attention": prefix(2, 2, seed=1)}, entry=1, shift=2)
    assert prefixes.positions(mask_BS, first=0) is None  # none of these rows has it
    with routing.of(torch.tensor([0, 1, NOBODY])):
        assert prefixes.positions(mask_BS, first=2).tolist() == [[2, 3, 4, 5], [7, 8, 8, 8], [2, 3, 4, 4]]
    with routing.of(torch.tensor([1, 1, 1])):
        assert prefixes.positions(mask_BS, first=0).tolist() == [[5, 6, 7, 8], [5, 6, 6, 6], [5, 6, 7, 7]]
