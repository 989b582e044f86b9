"""Every delta of the table on every family: starts as it says, trains only its own, merges exactly or not at all, serves rows side by
side, and goes without a trace."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES, MAPS
from fewtune.deltas import DELTAS
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.mask import Mask
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.sharing import Sharing
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, BackboneError

LINEAR = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
SETTINGS = {
    "lora": LoRA(rank=2),
    "lora-everywhere": LoRA(rank=3, alpha=1.5, sites=LINEAR),
    "lora-dropout": LoRA(rank=1, dropout=0.5, sites=("key", "ffn_out"), top=1 / 3),
    "rslora-ranks": LoRA(ranks=(1, 3), sites=("attention_in", "ffn_in"), rslora=True, init="gaussian"),
    "dora": LoRA(rank=2, sites=("attention_in", "ffn_out"), dora=True),
    "adapter": Adapter(size=4, at=("attention", "ffn")),
    "adapter-parallel": Adapter(size=3, at=("attention", "ffn"), activation="silu", parallel=True, scale=4.0, learned_scale=True),
    "adapter-houlsby": Adapter(size=5, init="houlsby", top=1 / 3),
    "ia3": IA3(),
    "ia3-top": IA3(outputs=("query", "attention_out"), inputs=("ffn_in",), top=1 / 3),
    "soft-prompt": SoftPrompt(length=3),
    "prefix": Prefix(length=2),
    "prefix-zero": Prefix(length=3, zero=True, top=1 / 3),
    "prefix-network": Prefix(length=2, hidden=4),
    "all": Subset("all"),
    "biases": Subset("biases"),
    "norms": Subset("norms"),
    "last": Subset("last"),
    "none": Subset("none"),
    "mask": Mask(),
    "mask-words": Mask(share=0.3, sites=("words", "ffn_in")),
    "sharing": Sharing(groups=1, rank=2),
    "sharing-groups": Sharing(groups=2, rank=3),
    "mask-own": Mask(share=0.25, sites=("attention_in", "words"), values="own"),
}
ELSEWHERE = {"int8", "narrow", "shallow"}
"""They train nothing, or change all rows alike: test_int8.py, test_narrow.py, test_shallow.py."""
MERGES = ("lora", "lora-everywhere", "lora-dropout", "rslora-ranks", "dora", "ia3", "ia3-top", "all", "biases", "norms", "last")
MERGES += ("mask", "mask-words", "mask-own", "sharing", "sharing-groups")


@pytest.fixture(scope="module")
def plain():
    """A backbone of each family, never changed: tests take copies."""
    found = {}
    for family in FAMILIES:
        model, tokenizer = tiny.model(family)
        found[family] = Backbone(model, tokenizer, name=family)
    return found


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


NO_ATTENTION, NO_BIASES = ("deberta-v2", "mpnet"), ("gemma", "gemma3_text", "llama", "qwen3", "t5")
REFUSED = {
    **{(family, name): "attention" for family in NO_ATTENTION for name in ("prefix", "prefix-zero", "prefix-network")},
    **{(family, "biases"): "expected biases to train" for family in NO_BIASES},
    ("albert", "sharing-groups"): "fewer groups than",  # its two blocks stand for all layers
}
"""What a family cannot carry → a part of the reason; all else it carries."""
STACKED = ("bert", "gpt2", "llama")  # one of each kind: projections apart, fused, and grouped with gates
CASES = [
    pytest.param(family, name, id=f"{family}-{name}", marks=[] if family == "llama" else [pytest.mark.slow])
    for family in FAMILIES
    for name in SETTINGS
    if (family, name) not in REFUSED
]
"""`make check` is content with one family."""


def case(plain, family, name):
    return copy.deepcopy(plain[family]), SETTINGS[name]


def batch():
    ids_BT = torch.randint(10, 120, (4, 6), generator=generator(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5, 4])[:, None]).long()
    return ids_BT, mask_BT


def outputs(backbone):
    """The LM head's logits everywhere (the states where there is no head), so that every weight of the model has a say in them."""
    ids_BT, mask_BT = batch()
    written_BFJ = ids_BT.flip(1)[:, None] if backbone.seq2seq else None
    hidden_ND = backbone.forward(ids_BT, mask_BT, written_BFJ=written_BFJ).hidden_BTD[mask_BT.bool()]
    return backbone.lm_logits(hidden_ND, torch.arange(120)) if backbone.has_lm_head else hidden_ND


def snapshot(backbone):
    """Everything a trace could be left in: the modules, the parameters, which of them take gradients, their bits, and the modes."""
    model = backbone.model
    return (
        {name: id(module) for name, module in model.named_modules()},
        {name: (id(weight), weight.requires_grad, weight.grad) for name, weight in model.named_parameters(remove_duplicate=False)},
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: module.training for name, module in model.named_modules()},
        (model.config._attn_implementation, backbone.room, backbone.entry),
    )


def assert_untouched(backbone, before):
    after = snapshot(backbone)
    assert after[0] == before[0] and after[1] == before[1] and after[3:] == before[3:]
    assert after[2].keys() == before[2].keys()
    assert all(torch.equal(after[2][name], tensor) for name, tensor in before[2].items())


def scatter(installed, seed=5):
    """Weights that training could have led to."""
    drawn = generator(seed)
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=drawn) * 0.1


def train(backbone, weights, *, steps=3):
    size = outputs(backbone).shape
    aim = torch.randint(size[-1], (size[0],), generator=generator(2))
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(outputs(backbone), aim).backward()
        assert all(weight.grad is not None for weight in weights)
        optimizer.step()
        optimizer.zero_grad()


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


def test_every_delta_and_family_is_seen():
    assert len(DELTAS) == 11 and {DELTAS.name_of(delta) for delta in SETTINGS.values()} == set(DELTAS) - ELSEWHERE
    assert len(FAMILIES) == 16
    assert len(CASES) == 16 * len(SETTINGS) - len(REFUSED)


@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_what_a_family_cannot_carry_is_refused_with_the_reason(plain, family, name):
    backbone, delta = case(plain, family, name)
    with pytest.raises(BackboneError, match=REFUSED[family, name]) as caught:
        delta.install(backbone, generator=generator())
    assert family in str(caught.value)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_it_says_truly_whether_the_model_starts_unchanged(plain, family, name):
    backbone, delta = case(plain, family, name)
    with torch.no_grad():
        before = outputs(backbone)
        delta.install(backbone, generator=generator())
        moved = (outputs(backbone) - before).abs().max().item()
    assert moved <= 1e-5 if delta.unchanged_at_start else moved > 1e-6
    if name == "adapter-houlsby":  # near the identity, as the paper asks
        assert moved < 1e-3


@pytest.mark.parametrize(("family", "name"), CASES)
def test_only_its_weights_are_trained_and_all_of_them_move(plain, family, name):
    backbone, delta = case(plain, family, name)
    untouched = snapshot(backbone)
    installed = delta.install(backbone, generator=generator())
    weights = dict(installed.weights)
    taking = {id(weight) for weight in backbone.model.parameters() if weight.requires_grad}
    assert taking <= {id(weight) for weight in weights.values()}
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    frozen = [(weight, weight.clone()) for weight in backbone.model.parameters() if not weight.requires_grad]
    if weights:
        train(backbone, list(weights.values()))
    assert all(not torch.equal(before[key], weight) for key, weight in weights.items())
    assert all(torch.equal(weight, was) and weight.grad is None for weight, was in frozen)
    installed.remove()
    assert_untouched(backbone, untouched)


# ModernBERT's only bias is the LM head's, which no state shows.
@pytest.mark.parametrize(("family", "name"), [one for one in CASES if one.values != ("modernbert", "biases")])
def test_no_block_below_the_first_is_changed_or_keeps_a_graph(plain, family, name):
    backbone, delta = case(plain, family, name)
    with torch.no_grad():
        before = list(backbone.layers(*batch()))
    installed = delta.install(backbone, generator=generator())
    scatter(installed)
    after = list(backbone.layers(*batch()))
    first, real = installed.first_block, batch()[1].bool()
    assert 0 <= first <= backbone.depth
    below = range(first + 1) if first else ()  # with all blocks trained the embeddings may be, too
    assert all(torch.equal(before[step], after[step]) and not after[step].requires_grad for step in below)
    for step in range(first + 1, backbone.depth + 1):
        assert after[step].requires_grad == bool(installed.weights) and not torch.equal(before[step][real], after[step][real])


@pytest.mark.parametrize(("family", "name"), CASES)
def test_saved_weights_give_the_same_outputs_again(plain, family, name):
    backbone, delta = case(plain, family, name)
    with torch.no_grad():
        untuned = outputs(backbone)
        first = delta.install(backbone, generator=generator())
        scatter(first)
        state, expected = first.state_dict(), outputs(backbone)
        first.remove()
        second = delta.install(backbone, generator=generator(99))
        second.load_state_dict(state)
        close(outputs(backbone), expected, atol=0 if name != "prefix-network" else 1e-6)
        assert second.stored_parameters == sum(tensor.numel() for tensor in state.values())
        assert second.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in second.state_dict().items())
        second.remove()
        assert torch.equal(outputs(backbone), untuned)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_missing_extra_and_misshapen_weights_are_refused(plain, family, name):
    backbone, delta = case(plain, family, name)
    installed = delta.install(backbone, generator=generator())
    state = installed.state_dict()
    with pytest.raises(ArtifactError, match='here: expected only tensors of this artifact, got "another"'):
        installed.load_state_dict({**state, "another": torch.zeros(1)}, where="here")
    for key in list(state)[:1]:
        with pytest.raises(ArtifactError, match="got none"):
            installed.load_state_dict({other: state[other] for other in state if other != key})
        with pytest.raises(ArtifactError, match="shape"):
            installed.load_state_dict({**state, key: torch.zeros(1, *state[key].shape)})
    assert all(torch.equal(tensor, state[key]) for key, tensor in installed.state_dict().items())


@pytest.mark.parametrize(("family", "name"), CASES)
def test_merging_gives_the_same_answers_and_unmerging_the_same_bytes(plain, family, name):
    backbone, delta = case(plain, family, name)
    installed = delta.install(backbone, generator=generator())
    scatter(installed)
    before = snapshot(backbone)
    if name not in MERGES:
        with pytest.raises(BackboneError, match="expected a delta that is a change of weights"):
            installed.merge()
        assert_untouched(backbone, before)
        return
    with torch.no_grad():
        expected = outputs(backbone)
        undo = installed.merge()
        close(outputs(backbone), expected, atol=1e-3)  # logits of tens, in single precision, through other products
        with pytest.raises(BackboneError, match="not merged yet"):
            installed.merge()
        undo()
        assert torch.equal(outputs(backbone), expected)
    assert_untouched(backbone, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "lora" else pytest.mark.slow) for name in MERGES])
def test_a_thousand_merges_leave_the_bytes_of_the_base(plain, name):
    backbone, delta = case(plain, "bert", name)
    untouched = snapshot(backbone)
    installed = delta.install(backbone, generator=generator())
    scatter(installed)
    for _ in range(1000):
        installed.merge()()
    installed.remove()
    assert_untouched(backbone, untouched)


def test_a_delta_that_shares_its_place_is_not_merged(plain):
    backbone = copy.deepcopy(plain["bert"])
    first = LoRA(rank=1).install(backbone, generator=generator())
    IA3().install(backbone, generator=generator())
    before = snapshot(backbone)
    with pytest.raises(BackboneError, match="expected no other delta at the place"):
        first.merge()
    assert_untouched(backbone, before)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_deltas_that_have_parameters_of_their_own_at_a_place_are_merged_one_after_the_other(plain, order):
    backbone = copy.deepcopy(plain["bert"])
    untouched = snapshot(backbone)
    parts = [Mask(sites=("words",)).install(backbone, generator=generator()), Subset("biases").install(backbone, generator=generator())]
    for part in parts:
        scatter(part)
    both, bare = snapshot(backbone), outputs(backbone).detach()
    undo = []
    for number in order:  # the LM head's projection has the words' weights and a bias
        undo.append(parts[number].merge())
        with torch.no_grad():
            close(outputs(backbone), bare, atol=1e-3)
    names = {name for name, _ in backbone.model.named_modules()}
    assert not any(name.endswith(".base") for name in names)
    for step in reversed(undo):
        step()
    assert_untouched(backbone, both)
    for part in reversed(parts):
        part.remove()
    assert_untouched(backbone, untouched)


# Rows side by side


def served(plain, family):
    """A backbone with every delta that it can carry as an entry of its own, and what each gives alone; in double precision, for in
    single the order in which a processor adds up shows at 1e-5.
    """
    backbone = copy.deepcopy(plain[family])
    backbone.model.double()
    names = [name for name in SETTINGS if (family, name) not in REFUSED]
    solo = {}
    ids_BT, mask_BT = batch()
    for entry, name in enumerate(names, start=1):
        with torch.no_grad():
            installed = doubled(SETTINGS[name].install(backbone, generator=generator(entry)))
            scatter(installed, seed=entry)
            solo[entry], state = backbone.forward(ids_BT, mask_BT).hidden_BTD, installed.state_dict()
            installed.remove()
        with backbone.installing(entry):
            doubled(SETTINGS[name].install(backbone, generator=generator(77))).load_state_dict(state)
    bare = copy.deepcopy(plain[family])
    bare.model.double()
    with torch.no_grad():
        solo[-1] = solo[0] = bare.forward(ids_BT, mask_BT).hidden_BTD
    return backbone, solo


def doubled(installed):
    for weight in installed.weights.values():
        weight.data = weight.data.double()
    return installed


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_batch_through_different_deltas_equal_their_solo_results(plain, family):
    backbone, solo = served(plain, family)
    ids_BT, mask_BT = batch()
    with torch.no_grad():
        entries = sorted(solo)
        routes = [[entries[(shift + 5 * row) % len(entries)] for row in range(4)] for shift in range(len(entries))]
        routes += [[entry] * 4 for entry in entries] + [[2, 2, 9, -1]]
        for route in routes:
            mixed_BTD = backbone.forward(ids_BT, mask_BT, route_B=torch.tensor(route)).hidden_BTD
            for row, entry in enumerate(route):
                real = mask_BT[row].bool()
                close(mixed_BTD[row][real], solo[entry][row][real])
        # Nothing is left of a route.
        close(backbone.forward(ids_BT, mask_BT).hidden_BTD[mask_BT.bool()], solo[0][mask_BT.bool()])


@pytest.mark.slow
@settings(max_examples=15)
@given(data=st.data())
def test_any_rows_in_any_order_equal_their_solo_results(data):
    family = data.draw(st.sampled_from(["bert", "gpt2"]))
    model, tokenizer = tiny.model(family)
    backbone, solo = served({family: Backbone(model, tokenizer, name=family)}, family)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(solo))), min_size=1, max_size=7))
    ids_BT, mask_BT = batch()
    chosen, route = torch.tensor([row for row, _ in rows]), torch.tensor([entry for _, entry in rows])
    with torch.no_grad():
        mixed_BTD = backbone.forward(ids_BT[chosen], mask_BT[chosen], route_B=route).hidden_BTD
    for number, (row, entry) in enumerate(rows):
        real = mask_BT[row].bool()
        close(mixed_BTD[number][real], solo[entry][row][real])


# How many weights


def expected_parameters(delta, backbone):
    """From the sizes of the sites, which the families' tests hold to the models' configurations."""
    if isinstance(delta, Subset):
        return subset_formula(delta, backbone)
    if isinstance(delta, SoftPrompt):
        return delta.length * backbone.embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1]
    if isinstance(delta, Prefix):
        return None  # its own reference test counts them
    if isinstance(delta, Mask):
        return None  # not all that is stored is trained: counted below
    if isinstance(delta, IA3):
        outs = sum(site.stop - site.start for name in delta.outputs for site in backbone.sites(name, top=delta.top))
        return outs + sum(site.inputs for name in delta.inputs for site in backbone.sites(name, top=delta.top))
    if isinstance(delta, Sharing):
        places = {site.path: site for name in MAPS for site in backbone.sites(name)}.values()
        groups = delta.members(backbone)
        low = sum(delta.rank * (site.inputs + site.outputs) for site in places if any(site.block in group for group in groups))
        once = sum(site.inputs * site.outputs for site in places if any(site.block == group[0] for group in groups))
        return low + once
    if isinstance(delta, Adapter):
        places = len(delta.at) * len(backbone.upper(delta.top))
        return places * (2 * backbone.width * delta.size + delta.size + backbone.width + delta.learned_scale)
    ranks = delta.ranks or (delta.rank,) * len(delta.sites)
    sites = [(site, rank) for name, rank in zip(delta.sites, ranks, strict=True) for site in backbone.sites(name, top=delta.top)]
    magnitudes = sum(site.stop - site.start for site, _ in sites) if delta.dora else 0
    return magnitudes + sum(rank * (site.inputs + site.stop - site.start) for site, rank in sites)


def subset_formula(delta, backbone):
    own = dict(backbone.model.named_parameters())
    norms = [backbone.model.get_submodule(site.path) for site in backbone.sites("norms")]
    norms += [backbone.stack.get_submodule(backbone.family.final_norm)] if backbone.family.final_norm else []
    return {
        "all": sum(weight.numel() for weight in own.values()),
        "biases": sum(weight.numel() for name, weight in own.items() if name.split(".")[-1] == "bias"),
        "norms": sum(weight.numel() for norm in norms for weight in norm.parameters()),
        "last": sum(weight.numel() for block in backbone.blocks[-delta.blocks :] for weight in block.parameters()),
        "none": 0,
    }[delta.part]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_as_many_weights_are_trained_as_the_formula_says(plain, family, name):
    backbone, delta = case(plain, family, name)
    expected = expected_parameters(delta, backbone)
    installed = delta.install(backbone, generator=generator())
    assert expected is None or installed.trained_parameters == expected == installed.stored_parameters


@pytest.mark.parametrize(("family", "name"), [one for one in CASES if one.values[1].startswith("mask")])
def test_a_mask_trains_what_remains_and_stores_a_bit_for_each_weight(plain, family, name):
    backbone, delta = case(plain, family, name)
    modules = {backbone.model.get_submodule(site.path) for one in delta.sites if one != "words" for site in backbone.sites(one)}
    modules |= {backbone.model.get_input_embeddings()} if "words" in delta.sites else set()
    sizes = [module.weight.numel() for module in modules]
    biases = sum(module.bias.numel() for module in modules if getattr(module, "bias", None) is not None)
    installed = delta.install(backbone, generator=generator())
    trained = sum(size - round(size * delta.share) for size in sizes) + biases if delta.values == "trained" else 0
    assert installed.trained_parameters == trained
    assert installed.stored_parameters == trained + sum(-(-size // 8) for size in sizes)


# Several


BELOW = ("lora", "norms", "prefix", "soft-prompt")
"""Each on three families; one of them on the others."""
STACKS = [
    pytest.param(family, name, below, id=f"{family}-{name}-on-{below}")
    for family, name in itertools.product(FAMILIES, SETTINGS)
    for below in (BELOW if family in STACKED else BELOW[:1])
    if not {(family, name), (family, below)} & REFUSED.keys() and name != below and {name, below} != {"prefix", "prefix-network"}
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name", "below"), STACKS)
def test_stacks_on_another(plain, family, name, below):
    backbone, delta = case(plain, family, name)
    untouched = snapshot(backbone)
    first = SETTINGS[below].install(backbone, generator=generator())
    with torch.no_grad():
        alone = outputs(backbone)
    second = delta.install(backbone, generator=generator(1))
    assert not {id(weight) for weight in first.weights.values()} & {id(weight) for weight in second.weights.values()}
    if delta.unchanged_at_start:
        with torch.no_grad():
            close(outputs(backbone), alone)
    # Both are in the forward and both learn.
    weights = [*first.weights.values(), *second.weights.values()]
    before = [weight.detach().clone() for weight in weights]
    train(backbone, weights)
    assert all(not torch.equal(was, weight) for was, weight in zip(before, weights, strict=True))
    # Both are in what is saved.
    states, expected = [first.state_dict(), second.state_dict()], outputs(backbone).detach()
    second.remove()
    first.remove()
    assert_untouched(backbone, untouched)
    first = SETTINGS[below].install(backbone, generator=generator(7))
    second = delta.install(backbone, generator=generator(8))
    first.load_state_dict(states[0])
    second.load_state_dict(states[1])
    close(outputs(backbone), expected, atol=1e-6)


def test_a_part_that_the_model_lacks_is_refused(plain):
    untouched = snapshot(plain["llama"])
    with pytest.raises(BackboneError, match="expected biases to train"):
        Subset("biases").install(plain["llama"], generator=generator())
    with pytest.raises(BackboneError, match="at most 3 blocks"):
        Subset("last", blocks=4).install(plain["bert"], generator=generator())
    with pytest.raises(BackboneError, match='name of a site, got "queri".*Did you mean "query"'):
        LoRA(sites=("queri",)).install(plain["llama"], generator=generator())
    assert_untouched(plain["llama"], untouched)


def test_a_part_that_is_trained_already_is_refused(plain):
    backbone = copy.deepcopy(plain["bert"])
    untouched = snapshot(backbone)
    first = Subset("norms").install(backbone, generator=generator())
    with pytest.raises(BackboneError, match="none in bert that no other delta trains"):
        Subset("norms").install(backbone, generator=generator())
    first.remove()
    assert_untouched(backbone, untouched)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_draw_is_the_generators_alone(plain, name):
    def drawn(seed):
        installed = SETTINGS[name].install(copy.deepcopy(plain["bert"]), generator=generator(seed))
        return {key: weight.detach().clone() for key, weight in installed.weights.items()}

    torch.manual_seed(0)
    first, before = drawn(3), torch.get_rng_state()
    again = drawn(3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    draws = name.split("-")[0] in ("lora", "rslora", "dora", "adapter", "soft", "prefix")
    assert draws == any(not torch.equal(tensor, first[key]) for key, tensor in drawn(4).items())


@settings(max_examples=40)
@given(
    family=st.sampled_from(["bert", "llama", "gpt2", "albert", "t5"]),
    moves=st.lists(st.one_of(st.none(), st.tuples(st.sampled_from(sorted(SETTINGS)), st.integers(0, 2**31))), max_size=8),
)
@pytest.mark.slow
def test_install_and_remove_in_any_order_leave_no_trace(family, moves):
    """`None` takes the uppermost delta away; each time the backbone is what it was before that delta, to the bit."""
    model, tokenizer = tiny.model(family)
    backbone, stack = Backbone(model, tokenizer, name=family), []

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
            installed = SETTINGS[move[0]].install(backbone, generator=generator(move[1]))
        except BackboneError:  # nothing is left to train, or not a place for it
            assert_untouched(backbone, before)
            continue
        scatter(installed)
        stack.append((installed, before))
    while stack:
        take_away()


def test_entries_come_and_go_in_any_order(plain):
    """Models are loaded and unloaded while others stay."""
    backbone = copy.deepcopy(plain["bert"])
    untouched = snapshot(backbone)
    for order in itertools.permutations(range(3)):
        installed = []
        for entry, name in enumerate(("lora", "ia3", "norms"), start=1):
            with backbone.installing(entry):
                installed.append(SETTINGS[name].install(backbone, generator=generator(entry)))
        for number in order:
            installed[number].remove()
        assert_untouched(backbone, untouched)
