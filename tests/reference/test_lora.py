"""LoRA against the dense formula W + (α / r) B A (Hu et al. 2021, section 4.1) and against the `peft` library."""

import warnings

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.lora import LoRA

LINEAR = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")


def made(family, *, dtype=torch.float32):
    model, tokenizer = tiny.model(family)
    return Backbone(model.to(dtype), tokenizer, name=family)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batch():
    ids_BT = torch.randint(10, 120, (3, 6), generator=generator(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    return ids_BT, mask_BT


def forward(backbone):
    ids_BT, mask_BT = batch()
    return backbone.forward(ids_BT, mask_BT).hidden_BTD[mask_BT.bool()]


def loss(hidden_ND):
    return (hidden_ND * torch.randn(hidden_ND.shape, generator=generator(2))).sum()


def installed_and_moved(backbone, delta):
    """B is zero at the start; other values show whether the whole product is right."""
    installed = delta.install(backbone, generator=generator(3))
    with torch.no_grad():
        for name, weight in installed.weights.items():
            if name.endswith("lora_B"):
                weight.copy_(torch.randn(weight.shape, generator=generator(4)) * 0.2)
    return installed


@pytest.mark.parametrize("delta", [LoRA(rank=2), LoRA(rank=3, alpha=1.5, sites=LINEAR), LoRA(rank=1, sites=("value", "ffn_in"), top=0.4)])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2"])
def test_equals_the_dense_formula(family, delta):
    backbone, dense = made(family), made(family)
    installed = installed_and_moved(backbone, delta)
    with torch.no_grad():
        untuned_ND = forward(dense)
        for site in (site for name in delta.sites for site in dense.sites(name, top=delta.top)):
            A_RI = installed.weights[f"{site.path}.{site.name}.lora_A"]
            B_OR = installed.weights[f"{site.path}.{site.name}.lora_B"]
            update_OI = delta.alpha / delta.rank * B_OR @ A_RI
            weight = dense.model.get_submodule(site.path).weight
            if family == "gpt2":  # Conv1D keeps (inputs, outputs), and query, key and value side by side in one
                weight[:, site.start : site.stop] += update_OI.T
            else:
                weight += update_OI
        torch.testing.assert_close(forward(backbone), forward(dense), atol=1e-5, rtol=1e-5)
        assert (forward(dense) - untuned_ND).abs().max() > 1e-2


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_gpt2_changes_no_more_than_its_slice_of_the_fused_map(part):
    backbone = made("gpt2")
    fused = backbone.sites(part)[0].path
    inputs = torch.randn(5, backbone.width, generator=generator(6))
    with torch.no_grad():
        before = backbone.model.get_submodule(fused)(inputs)
        installed = installed_and_moved(backbone, LoRA(rank=2, sites=(part,)))
        after = backbone.model.get_submodule(fused)(inputs)
    A_RI, B_OR = (installed.weights[f"{fused}.{part}.lora_{half}"] for half in "AB")
    start = {"query": 0, "key": 32, "value": 64}[part]
    expected = before.clone()
    expected[:, start : start + 32] += 8 * inputs @ A_RI.T @ B_OR.T
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-6)


def with_peft(family, delta, targets):
    import peft

    model, _ = tiny.model(family)
    shape = {"use_dora": delta.dora, "use_rslora": delta.rslora, "init_lora_weights": True if delta.init == "kaiming" else delta.init}
    config = peft.LoraConfig(r=delta.rank, lora_alpha=delta.alpha, target_modules=targets, lora_dropout=0.0, bias="none", **shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config).eval()


def halves(model, site):
    """peft's own A and B at the place that fewtune calls `site`."""
    module = model.base_model.model.get_submodule(site.path)
    found = {"lora_A": module.lora_A["default"].weight, "lora_B": module.lora_B["default"].weight}
    if "default" in module.lora_magnitude_vector:
        found["magnitude"] = module.lora_magnitude_vector["default"].weight
    return found


PEFT_NAMES = {
    "bert": {
        "query": "query",
        "key": "key",
        "value": "value",
        "attention_out": "attention.output.dense",
        "ffn_in": "intermediate.dense",
        "ffn_out": r"\d+.output.dense",
    },
    "llama": {
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "attention_out": "o_proj",
        "ffn_in": "(gate|up)_proj",
        "ffn_out": "down_proj",
    },
}


VARIANTS = [LoRA(rank=4, rslora=True), LoRA(rank=2, dora=True), LoRA(rank=3, alpha=2.0, sites=LINEAR, dora=True, rslora=True)]


@pytest.mark.parametrize("delta", [LoRA(rank=2), LoRA(rank=3, alpha=1.5, sites=LINEAR), LoRA(rank=1, sites=("key", "ffn_in")), *VARIANTS])
@pytest.mark.parametrize("family", list(PEFT_NAMES))
def test_equals_peft_in_outputs_and_gradients(family, delta):
    # In double precision, for in single the order in which autograd adds up shows at 1e-5 of these gradients.
    backbone = made(family, dtype=torch.float64)
    installed = installed_and_moved(backbone, delta)
    for weight in installed.weights.values():
        weight.data = weight.data.double()
    targets = r".*\.(" + "|".join(PEFT_NAMES[family][site] for site in delta.sites) + ")"
    theirs = with_peft(family, delta, targets).double()
    pairs = []
    for site in (site for name in delta.sites for site in backbone.sites(name)):
        for half, weight in halves(theirs, site).items():
            mine = installed.weights[f"{site.path}.{site.name}.{half}"]
            with torch.no_grad():
                if half == "magnitude":  # starts as the lengths of the frozen weights, and is moved from there
                    torch.testing.assert_close(mine, weight, atol=1e-6, rtol=1e-6)
                    mine *= 1 + torch.rand(len(mine), generator=generator(5)).double()
                weight.copy_(mine)
            pairs.append((mine, weight))
    assert len(pairs) == len(installed.weights) == sum(weight.requires_grad for weight in theirs.parameters())
    ids_BT, mask_BT = batch()
    plain = theirs.base_model.model.base_model
    mine_ND, theirs_ND = forward(backbone), plain(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[mask_BT.bool()].float()
    torch.testing.assert_close(mine_ND, theirs_ND, atol=1e-6, rtol=1e-6)
    loss(mine_ND).backward()
    loss(theirs_ND).backward()
    for mine, other in pairs:
        assert mine.grad.abs().max() > 0.1
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", list(PEFT_NAMES))
@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_starts_from_the_distribution_that_peft_draws_from(family, init):
    delta = LoRA(rank=1024, init=init)
    installed = delta.install(backbone := made(family), generator=generator(0))
    torch.manual_seed(0)  # peft draws from the global generator
    theirs = halves(with_peft(family, delta, [PEFT_NAMES[family]["query"]]), backbone.sites("query")[0])
    mine = {half: installed.weights[f"{backbone.sites('query')[0].path}.query.{half}"] for half in theirs}
    assert not bool(mine["lora_B"].any()) and not bool(theirs["lora_B"].any())
    # Uniform within the same bounds: 32,768 draws come near them and have the same spread; a normal one has no bounds.
    bounds = (torch.Tensor.max, torch.Tensor.min) if init == "kaiming" else ()
    for statistic in (*bounds, torch.Tensor.std):
        assert statistic(mine["lora_A"]).item() == pytest.approx(statistic(theirs["lora_A"]).item(), rel=0.05)


def test_dropout_is_on_the_updates_input_only():
    backbone = made("bert")
    installed = installed_and_moved(backbone, LoRA(rank=2, dropout=0.5, sites=("ffn_out",), top=0.1))
    (site,) = backbone.sites("ffn_out", top=0.1)
    layer = backbone.model.get_submodule(site.path)
    inputs = torch.ones(1, site.inputs)
    with torch.no_grad():
        quiet = layer(inputs)
        assert torch.equal(quiet, layer(inputs))
        for module in installed.train_mode:
            module.train()
        torch.manual_seed(0)
        loud = layer(inputs)
        torch.manual_seed(0)
        dropped = torch.nn.functional.dropout(inputs, 0.5, training=True)
    A_RI, B_OR = installed.weights.values()
    torch.testing.assert_close(loud, layer.base(inputs) + 8 * dropped @ A_RI.T @ B_OR.T, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(loud, quiet, atol=1e-3)
