"""(IA)³ and soft prompts against the `peft` library: outputs and gradients."""

import warnings

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt

# The paper's places; peft's own default on BERT also rescales what attention's output projection is given.
CASES = {
    "bert": (IA3(), r".*(self\.key|self\.value|layer\.\d+\.output\.dense)", r".*layer\.\d+\.output\.dense"),
    "llama": (IA3(), r".*(k_proj|v_proj|down_proj)", r".*down_proj"),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batch():
    ids_BT = torch.randint(10, 120, (3, 6), generator=generator(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    return ids_BT, mask_BT


def backbone_of(family):
    model, tokenizer = tiny.model(family)
    return Backbone(model.double(), tokenizer, name=family)


def peft_model(family, config):
    import peft

    model, _ = tiny.model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config).double().eval()


def loss(hidden_ND):
    return (hidden_ND * torch.randn(hidden_ND.shape, generator=generator(2))).sum()


@pytest.mark.parametrize("family", CASES)
def test_ia3_equals_peft(family):
    import peft

    delta, targets, feedforward = CASES[family]
    backbone = backbone_of(family)
    installed = delta.install(backbone, generator=generator(0))
    theirs = peft_model(family, peft.IA3Config(target_modules=targets, feedforward_modules=feedforward))
    pairs = []
    for name, weight in installed.weights.items():
        path = name.rsplit(".", 2)[0]
        other = theirs.base_model.model.get_submodule(path).ia3_l["default"]
        weight.data = weight.data.double()
        with torch.no_grad():
            weight += torch.randn(weight.shape, generator=generator(weight.numel())).double() * 0.3
            other.copy_(weight.reshape(other.shape))
        pairs.append((weight, other))
    assert len(pairs) == 9 == sum(weight.requires_grad for weight in theirs.parameters())
    ids_BT, mask_BT = batch()
    real = mask_BT.bool()
    mine_ND = backbone.forward(ids_BT, mask_BT).hidden_BTD[real]
    theirs_ND = theirs.base_model.model.base_model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[real].float()
    torch.testing.assert_close(mine_ND, theirs_ND, atol=1e-6, rtol=1e-6)
    loss(mine_ND).backward()
    loss(theirs_ND).backward()
    for mine, other in pairs:
        assert mine.grad.abs().max() > 0.01
        torch.testing.assert_close(mine.grad, other.grad.reshape(mine.shape), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_soft_prompt_equals_pefts_prompt_tuning(family):
    import peft

    backbone = backbone_of(family)
    theirs = peft_model(family, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    vectors = theirs.prompt_encoder["default"].embedding.weight
    installed = SoftPrompt(length=4).install(backbone, generator=generator(0))
    (mine,) = installed.weights.values()
    mine.data = vectors.detach().clone()
    ids_BT, mask_BT = batch()
    real = mask_BT.bool()
    hidden_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
    logits_NV = backbone.lm_logits(hidden_BTD[real].double(), torch.arange(100))
    theirs_NV = theirs(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 4:, :100][real].float()
    torch.testing.assert_close(logits_NV, theirs_NV, atol=1e-5, rtol=1e-5)
    loss(logits_NV).backward()
    loss(theirs_NV).backward()
    torch.testing.assert_close(mine.grad, vectors.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_soft_prompt_from_a_text_starts_where_the_text_in_front_would(family):
    """At the input the vectors are the tokens' own, so that a hard prompt can be gone on from."""
    backbone = backbone_of(family)
    text = "great fun"
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    own_BT, mask_BT = torch.randint(10, 120, (1, 5), generator=generator(3)), torch.ones(1, 5).long()
    with torch.no_grad():
        hard_BTD = backbone.forward(torch.cat([torch.tensor([ids]), own_BT], 1), torch.ones(1, 5 + len(ids)).long()).hidden_BTD
        installed = SoftPrompt(length=0, text=text).install(backbone, generator=generator(0))
        soft_BTD = backbone.forward(own_BT, mask_BT).hidden_BTD
    assert installed.trained_parameters == len(ids) * backbone.width
    torch.testing.assert_close(soft_BTD, hard_BTD[:, len(ids) :], atol=1e-5, rtol=1e-5)


def test_a_text_is_repeated_or_cut_and_a_draw_is_of_frequent_tokens_only():
    backbone = backbone_of("bert")
    table = backbone.embed(torch.arange(len(backbone.tokenizer))[None])[0].float()
    ids = backbone.tokenizer("great fun", add_special_tokens=False)["input_ids"]
    for length in (1, 5):
        (vectors,) = SoftPrompt(length=length, text="great fun").install(backbone_of("bert"), generator=generator(0)).weights.values()
        torch.testing.assert_close(vectors.detach(), table[(ids * 5)[:length]].detach())
    (drawn,) = SoftPrompt(length=50).install(backbone, generator=generator(0)).weights.values()
    found = [(table == vector).all(1).nonzero()[0].item() for vector in drawn.detach()]
    assert not set(found) & set(backbone.tokenizer.all_special_ids)
