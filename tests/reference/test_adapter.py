"""Adapters against their formulas written densely, with hooks that know nothing of banks."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.adapter import Adapter

FUNCTIONS = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu, "tanh": torch.tanh}
# By hand: block → (where the sub-layer's inputs are seen, where its outputs come from).
PLACES = {
    "bert": {"attention": ("attention.self.query", "attention.output.dense"), "ffn": ("intermediate.dense", "output.dense")},
    "llama": {"attention": ("self_attn.q_proj", "self_attn.o_proj"), "ffn": ("mlp.up_proj", "mlp.down_proj")},
    "gpt2": {"attention": ("attn.c_attn", "attn.c_proj"), "ffn": ("mlp.c_fc", "mlp.c_proj")},
}
DELTAS = [
    Adapter(size=4, at=("attention", "ffn"), activation="relu"),
    Adapter(size=3, at=("ffn",), activation="silu", init="bert", scale=0.5),
    Adapter(size=5, at=("attention",), activation="tanh", parallel=True, top=0.4),
    Adapter(size=4, at=("attention", "ffn"), activation="gelu", parallel=True, scale=4.0, learned_scale=True),
]


def batch():
    ids_BT = torch.randint(10, 120, (3, 6), generator=torch.Generator().manual_seed(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    return ids_BT, mask_BT


def backbone_of(family):
    model, tokenizer = tiny.model(family)
    return Backbone(model, tokenizer, name=family)


def hooked(backbone, delta, installed, family):
    """The same change by forward hooks and the formula `y + s · (Up g(Down x + b) + c)`."""
    seen = {}
    for block in backbone.upper(delta.top):
        for name in delta.at:
            start, end = (backbone.blocks[block].get_submodule(path) for path in PLACES[family][name])
            (path,) = [site.path for site in backbone.sites({"attention": "attention_out", "ffn": "ffn_out"}[name]) if site.block == block]
            part = {
                key.removeprefix(f"{path}.{name}."): weight
                for key, weight in installed.weights.items()
                if key.startswith(f"{path}.{name}.")
            }
            key = (block, name)
            start.register_forward_hook(lambda module, inputs, output, key=key: seen.__setitem__(key, inputs[0]))

            def added(module, inputs, output, key=key, part=part):
                read = seen[key] if delta.parallel else output
                hidden = FUNCTIONS[delta.activation](read @ part["down_MD"].T + part["down_M"])
                return output + part.get("factor", delta.scale) * (hidden @ part["up_DM"].T + part["up_D"])

            end.register_forward_hook(added)


@pytest.mark.parametrize("delta", DELTAS, ids=str)
@pytest.mark.parametrize("family", PLACES)
def test_equals_the_formula_in_outputs_and_gradients(family, delta):
    backbone, dense = backbone_of(family), backbone_of(family)
    installed = delta.install(backbone, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.2
    untuned_BTD = dense.forward(*batch()).hidden_BTD
    hooked(dense, delta, installed, family)
    real, weights = batch()[1].bool(), list(installed.weights.values())
    gradients = []
    for one in (backbone, dense):
        hidden_ND = one.forward(*batch()).hidden_BTD[real]
        loss = (hidden_ND * torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(3))).sum()
        gradients.append((hidden_ND, torch.autograd.grad(loss, weights)))
    (mine_ND, mine), (theirs_ND, theirs) = gradients
    torch.testing.assert_close(mine_ND, theirs_ND, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert (mine_ND - untuned_BTD[real]).abs().max() > 1e-2
