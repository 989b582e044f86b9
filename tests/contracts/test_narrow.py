"""Narrower blocks in every family: what remains answers as the whole model does whose other heads and neurons are masked, is as small as
it says, is saved and read again, carries other deltas, and goes without a trace."""

import pytest
import torch

from fewtune.backbone import tiny, trim
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.backbone.families import FAMILIES
from fewtune.backbone.generation import generate
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, BackboneError, SpecError

RIGID = ("t5",)
"""Families whose heads have to stay."""
SHARES = {"heads": Narrow(heads=0.5, ffn=1.0), "ffn": Narrow(heads=1.0, ffn=0.3), "both": Narrow(heads=0.5, ffn=0.5)}
CASES = [(family, name) for family in FAMILIES for name in SHARES if family not in RIGID or name == "ffn"]
WIDTH, INNER, HEADS = 32, 128, 4


class Masked(Edit):
    """What is read of some units is zero."""

    def __init__(self, mask_N):
        super().__init__()
        self.mask_N = mask_N

    def before(self, inputs):
        return inputs * self.mask_N


def made(family):
    return Backbone(*tiny.model(family), name=f"tiny {family}")


def batch():
    ids_BT = torch.randint(10, 120, (4, 6), generator=torch.Generator().manual_seed(1))
    return ids_BT, (torch.arange(6) < torch.tensor([6, 3, 5, 4])[:, None]).long()


def install(delta, backbone, seed=0):
    return delta.install(backbone, generator=torch.Generator().manual_seed(seed))


def drawn(backbone, delta, seed=0):
    """As many units as the delta keeps, others than it would choose, and not as many in each block."""
    kept, generator = {}, torch.Generator().manual_seed(seed)
    for part in delta.parts:
        for block in range(len(backbone.blocks)):
            count = trim.units(backbone, part, block)
            most = max(1, round(delta.shares[part] * count) - (block == 1))
            kept[part, block] = torch.randperm(count, generator=generator)[:most].sort().values.to(torch.int32)
    return kept


def masked(backbone, kept):
    """What the whole model makes of it with the other units masked."""
    undo = []
    for (part, block), kept_K in kept.items():
        path, size = trim.reader(backbone, part, block)
        mask_U = torch.zeros(trim.units(backbone, part, block))
        mask_U[kept_K.long()] = 1.0
        undo.append(backbone.edit(path, Masked(mask_U.repeat_interleave(size))))
    found = hidden(backbone)
    for step in reversed(undo):
        step()
    return found


@torch.no_grad()
def hidden(backbone):
    """States at real tokens; of a model with a decoder these of the answers, too."""
    ids_BT, mask_BT = batch()
    encoded = backbone.forward(ids_BT, mask_BT).hidden_BTD[mask_BT.bool()]
    written = [backbone.forward(ids_BT, mask_BT, written_BFJ=ids_BT.flip(1)[:, None]).hidden_BTD.flatten(0, 1)] if backbone.seq2seq else []
    return torch.cat([encoded, *written])


def traces(backbone):
    return (
        {name: id(module) for name, module in backbone.model.named_modules()},
        {name: (id(weight), weight.requires_grad) for name, weight in backbone.model.named_parameters(remove_duplicate=False)},
        {
            name: {key: value for key, value in vars(module).items() if isinstance(value, int)}
            for name, module in backbone.model.named_modules()
        },
        [len(module._forward_pre_hooks) for module in backbone.model.modules()],
        backbone.claims,
    )


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


def scatter(installed):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=generator) * 0.1


def test_every_family_and_part_is_seen():
    assert set(trim.PARTS) == {"heads", "ffn"} and len(CASES) == 3 * len(FAMILIES) - 2 * len(RIGID) == 46


@pytest.mark.parametrize(("family", "name"), CASES)
def test_what_remains_answers_as_the_whole_model_with_the_rest_masked(family, name):
    backbone, delta = made(family), SHARES[name]
    kept, before, whole = drawn(backbone, delta), traces(backbone), hidden(backbone)
    expected = masked(backbone, kept)
    assert traces(backbone) == before and not torch.allclose(expected, whole, atol=1e-3)
    narrowed = delta.keeping(backbone, kept)
    close(hidden(backbone), expected)
    ids_BT, mask_BT = batch()
    with torch.no_grad():
        last = backbone.forward(ids_BT, mask_BT).hidden_BTD
        walked = list(backbone.layers(ids_BT, mask_BT))
        assert torch.equal(backbone.norm(walked[-1])[mask_BT.bool()], last[mask_BT.bool()])
        assert torch.equal(backbone.forward(ids_BT, mask_BT, start=1, below_BTD=walked[1]).hidden_BTD, last)
        climb = backbone.climb(ids_BT, mask_BT)
        climb.up()
        climb.keep(torch.tensor([0, 2]))
        while climb.step < backbone.depth:
            climb.up()
        close(backbone.norm(climb.hidden_BTD)[0], last[0])
        real = mask_BT[2].bool()
        close(backbone.norm(climb.hidden_BTD)[1][real], last[2][real])
    narrowed.remove()
    assert traces(backbone) == before
    assert torch.equal(hidden(backbone), whole)


def formula(backbone, kept):
    """Weights and biases of what remains, from the configuration alone."""
    config = backbone.model.config
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or WIDTH // HEADS
    keys = getattr(config, "num_key_value_heads", None) or HEADS
    family, total = config.model_type, 0
    biased = family not in ("gemma", "gemma3_text", "llama", "qwen3", "modernbert", "t5")
    gated = family in ("gemma", "gemma3_text", "llama", "modernbert", "qwen2", "qwen3", "t5")
    for (part, _), kept_K in kept.items():
        if part == "heads":
            rows = len(kept_K) * size * (HEADS // keys + 2)
            total += rows * WIDTH + len(kept_K) * (HEADS // keys) * size * WIDTH
            total += (rows + (WIDTH if family != "qwen2" else 0)) if biased else 0
        else:
            rows = len(kept_K) * (1 + gated)
            total += rows * WIDTH + len(kept_K) * WIDTH
            total += rows + WIDTH if biased and family != "qwen2" else 0
    return total


@pytest.mark.parametrize(("family", "name"), CASES)
def test_it_has_as_many_weights_as_the_formula_says(family, name):
    backbone, delta = made(family), SHARES[name]
    kept = drawn(backbone, delta)
    paths = {cut.path for (part, block), kept_K in kept.items() for cut in trim.cuts(backbone, part, block, kept_K)}
    of_cut = [sum(weight.numel() for path in paths for weight in backbone.model.get_submodule(path).parameters())]
    before = sum(weight.numel() for weight in backbone.model.parameters())
    narrowed = delta.keeping(backbone, kept)
    of_cut.append(sum(weight.numel() for path in paths for weight in backbone.model.get_submodule(path).parameters()))
    assert before - sum(weight.numel() for weight in backbone.model.parameters()) == of_cut[0] - of_cut[1] > 0
    assert narrowed.trained_parameters == of_cut[1] == formula(backbone, kept)
    assert narrowed.stored_parameters == of_cut[1] + sum(map(len, kept.values()))
    narrowed.remove()
    numbers = Narrow(delta.heads, delta.ffn, trained=False).keeping(backbone, kept)
    assert numbers.trained_parameters == 0 and numbers.stored_parameters == sum(map(len, kept.values()))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_units_are_kept_in_the_shares_asked_for(family, name):
    backbone, delta = made(family), SHARES[name]
    whole = {part: sum(trim.units(backbone, part, block) for block in range(len(backbone.blocks))) for part in delta.parts}
    narrowed = install(delta, backbone)
    for part, count in whole.items():
        kept = [kept_K for (own, _), kept_K in narrowed.kept.items() if own == part]
        assert sum(map(len, kept)) == max(len(kept), round(delta.shares[part] * count)) and min(map(len, kept)) >= 1


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_read_again_whatever_units_it_keeps(family, trained):
    backbone = made(family)
    delta = Narrow(heads=1.0 if family in RIGID else 0.5, ffn=0.4, trained=trained)
    before, whole = traces(backbone), hidden(backbone)
    first = delta.keeping(backbone, drawn(backbone, delta))
    scatter(first)
    state, expected = first.state_dict(), hidden(backbone)
    first.remove()
    second = install(delta, backbone, 99)
    assert not torch.allclose(hidden(backbone), expected, atol=1e-3)
    second.load_state_dict(state)
    assert torch.equal(hidden(backbone), expected)
    assert second.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in second.state_dict().items())
    second.remove()
    assert traces(backbone) == before and torch.equal(hidden(backbone), whole)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_what_was_not_saved_by_it_is_refused_and_changes_nothing(family):
    backbone, delta = made(family), SHARES["both"]
    narrowed = delta.keeping(backbone, drawn(backbone, delta))
    scatter(narrowed)
    state, expected = narrowed.state_dict(), hidden(backbone)
    numbers = f"{backbone.blocks_path}.1.ffn"
    matrix = next(name for name in state if name.endswith("weight"))
    for odd, message in [
        ({**state, "another": torch.zeros(1)}, 'here: expected only tensors of this artifact, got "another"'),
        ({name: tensor for name, tensor in state.items() if name != numbers}, f'the tensor "{numbers}"'),
        ({name: tensor for name, tensor in state.items() if name != matrix}, f'the tensor "{matrix}"'),
        ({**state, matrix: torch.zeros(1, 1)}, "of shape"),
        ({**state, numbers: state[numbers][:-1]}, "of shape"),
        ({**state, numbers: state[numbers].flip(0)}, "numbers of units from 0 to 127, in order"),
        ({**state, numbers: state[numbers] + 100}, "numbers of units from 0 to 127"),
        ({**state, numbers: state[numbers][None]}, "numbers of units from 0 to 127"),
        ({**state, numbers: torch.zeros(0, dtype=torch.int32)}, "numbers of units from 0 to 127"),
        ({**state, numbers: state[numbers].float()}, "numbers of units from 0 to 127"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            narrowed.load_state_dict(odd, where="here")
        assert torch.equal(hidden(backbone), expected)
        assert all(torch.equal(tensor, state[key]) for key, tensor in narrowed.state_dict().items())


ABOVE = {
    "lora": LoRA(rank=2, sites=("query", "value", "attention_out", "ffn_in", "ffn_out")),
    "ia3": IA3(),
    "adapter": Adapter(size=4, at=("attention", "ffn")),
    "all": Subset("all"),
    "norms": Subset("norms"),
    "prefix": Prefix(length=2),
}


@pytest.mark.parametrize(
    ("family", "above"),
    [(family, above) for family in FAMILIES for above in ABOVE if above != "prefix" or family not in ("mpnet", "deberta-v2")],
)
def test_other_deltas_stand_on_what_remains(family, above):
    backbone = made(family)
    untouched = traces(backbone)
    delta = Narrow(heads=1.0 if family in RIGID else 0.5, ffn=0.4, trained=above != "all")
    first = install(delta, backbone)
    second = install(ABOVE[above], backbone)
    assert not {id(weight) for weight in first.weights.values()} & {id(weight) for weight in second.weights.values()}
    weights = [*first.weights.values(), *second.weights.values()]
    scatter(second)
    ids_BT, mask_BT = batch()
    written_BFJ = ids_BT.flip(1)[:, None] if backbone.seq2seq else None
    states_ND = backbone.forward(ids_BT, mask_BT, written_BFJ=written_BFJ).hidden_BTD.flatten(0, 1)
    backbone.lm_logits(states_ND, torch.arange(120)).log_softmax(-1)[:, 7].sum().backward()
    assert all(weight.grad is not None for weight in weights), "both learn"
    with torch.no_grad():
        for weight in weights:
            weight -= 0.01 * weight.grad.sign()
    states, expected = [first.state_dict(), second.state_dict()], hidden(backbone)
    second.remove()
    first.remove()
    assert traces(backbone) == untouched
    first = install(delta, backbone)
    first.load_state_dict(states[0])
    second = install(ABOVE[above], backbone, 9)
    second.load_state_dict(states[1])
    close(hidden(backbone), expected, atol=1e-6)


def test_it_can_be_made_narrower_again():
    backbone = made("bert")
    untouched = traces(backbone)
    first = install(Narrow(heads=0.5, ffn=0.5), backbone)
    second = install(Narrow(heads=0.5, ffn=0.5), backbone)
    assert sum(map(len, second.kept.values())) == round(3 * HEADS / 4) + round(3 * INNER / 4)
    second.remove()
    first.remove()
    assert traces(backbone) == untouched


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "qwen3"])
def test_kept_keys_and_values_are_those_of_the_heads_that_remain(family):
    """Text that is written with a cache is what is likeliest without one, token by token."""
    backbone = made(family)
    install(SHARES["both"], backbone)
    prompt = [20, 31, 42, 53]
    (written,) = generate(backbone, [prompt], most=4, ended=lambda ids: False)
    for number, token in enumerate(written.ids):
        ids_BT = torch.tensor([[*prompt, *written.ids[:number]]])
        with torch.no_grad():
            last_1D = backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD[:, -1]
        assert int(backbone.lm_logits(last_1D, None).argmax()) == token


def test_what_cannot_be_is_refused_with_the_reason_and_leaves_nothing():
    for family in RIGID:
        backbone = made(family)
        untouched = traces(backbone)
        with pytest.raises(BackboneError, match=f'fewer heads, got model type "{family}": blocks that hand each other one table.*heads=1'):
            install(SHARES["both"], backbone)
        assert traces(backbone) == untouched
    model, tokenizer = tiny.model("deberta-v2")
    for block in model.base_model.encoder.layer:  # as in models that project relative positions apart
        block.attention.self.pos_key_proj = torch.nn.Linear(WIDTH, WIDTH)
    with pytest.raises(BackboneError, match="another projection of its heads, pos_key_proj"):
        install(SHARES["heads"], Backbone(model, tokenizer, name="deberta"))
    backbone = made("bert")
    lora = install(LoRA(rank=1, sites=("query",)), backbone)
    untouched = traces(backbone)
    with pytest.raises(BackboneError, match="expected a matrix that no delta changes.*Make the model narrower first"):
        install(SHARES["heads"], backbone)
    assert traces(backbone) == untouched
    lora.remove()
    narrowed = install(SHARES["ffn"], backbone)
    with pytest.raises(BackboneError, match="a change of weights, got Narrow"):
        narrowed.merge()
    with pytest.raises(BackboneError, match="got a model with narrower layers.*a PLM of its own"), backbone.installing(1):
        pass


@pytest.mark.parametrize("shares", [{"heads": 0.0}, {"ffn": 1.5}, {"heads": 1.0, "ffn": 1.0}])
def test_shares_are_above_nothing_and_at_most_all(shares):
    with pytest.raises(SpecError, match="narrow"):
        Narrow(**shares)
