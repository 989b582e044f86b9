"""A folder of trained deltas stands for the PLM with them in it: the same scores, for good, and refused when it is not what it was."""

import json

import pytest
import torch

from fewtune import plm
from fewtune.backbone import tiny
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.delta import remove_all
from fewtune.deltas.lora import LoRA
from fewtune.deltas.scaling import IA3
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, SpecError

IDS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
MASK = torch.ones_like(IDS)


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tiny.save("llama", tmp_path / "base"))


def trained(base, *deltas):
    """A PLM with deltas whose weights are not those they start with."""
    backbone = plm.load(base)
    installed = plm.install(backbone, deltas, seed=3)
    drawn = torch.Generator().manual_seed(1)
    for part in installed:
        for weight in part.weights.values():
            with torch.no_grad():
                weight += 0.1 * torch.randn(weight.shape, generator=drawn)
    return backbone, installed


@pytest.mark.parametrize("deltas", [(LoRA(rank=2),), (IA3(),), (Subset("norms"), LoRA(rank=2, sites=("ffn_in",))), (Subset("all"),)])
def test_the_folder_answers_as_the_deltas_did(base, tmp_path, deltas):
    backbone, installed = trained(base, *deltas)
    hidden_BTD = backbone.forward(IDS, MASK).hidden_BTD
    logits_NV = backbone.lm_logits(hidden_BTD[:, -1], None)
    plm.save(installed, tmp_path / "better", about={"seed": 3}, card="# better\n")
    again = plm.load(str(tmp_path / "better"))
    assert torch.allclose(again.forward(IDS, MASK).hidden_BTD, hidden_BTD, atol=1e-5)
    assert torch.allclose(again.lm_logits(hidden_BTD[:, -1], None), logits_NV, atol=1e-4)
    assert again.parameters == backbone.parameters and not any(weight.requires_grad for weight in again.model.parameters())
    assert again.name == str(tmp_path / "better") and again.fingerprint not in ("", backbone.fingerprint)
    assert plm.load(str(tmp_path / "better")).fingerprint == again.fingerprint


def test_trying_whether_deltas_merge_leaves_no_trace(base):
    backbone = plm.load(base)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    remove_all(plm.install(backbone, [LoRA(rank=2)], seed=0))
    assert before.keys() == backbone.model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize("deltas", [(), (Adapter(size=2),), (LoRA(rank=2), LoRA(rank=1))])
def test_deltas_that_cannot_become_weights_are_refused_before_they_are_trained(base, deltas):
    backbone = plm.load(base)
    with pytest.raises(SpecError, match="--delta: expected"):
        plm.install(backbone, deltas, seed=0)
    assert "base.weight" not in " ".join(backbone.model.state_dict())


@pytest.mark.slow
def test_a_folder_on_a_folder(base, tmp_path):
    _, installed = trained(base, LoRA(rank=2))
    plm.save(installed, tmp_path / "one", about={}, card="")
    backbone, more = trained(str(tmp_path / "one"), LoRA(rank=2))
    hidden_BTD = backbone.forward(IDS, MASK).hidden_BTD
    plm.save(more, tmp_path / "two", about={}, card="")
    assert torch.allclose(plm.load(str(tmp_path / "two")).forward(IDS, MASK).hidden_BTD, hidden_BTD, atol=1e-5)


def test_what_was_changed_is_refused(base, tmp_path):
    _, installed = trained(base, LoRA(rank=2))
    better = tmp_path / "better"
    plm.save(installed, better, about={}, card="")
    kept = (better / "delta-0.safetensors").read_bytes()
    (better / "delta-0.safetensors").write_bytes(kept[:-4] + b"\0\0\0\0")
    with pytest.raises(ArtifactError, match="a changed one"):
        plm.load(str(better))
    (better / "delta-0.safetensors").write_bytes(kept)
    tiny.save("llama", tmp_path / "base", seed=5)
    with pytest.raises(ArtifactError, match="base with weights"):
        plm.load(str(better))
    manifest = json.loads((better / "backbone.json").read_text())
    (better / "backbone.json").write_text(json.dumps({**manifest, "trained_parameters": 1}))
    with pytest.raises(ArtifactError, match="as it was written"):
        plm.load(str(better))
