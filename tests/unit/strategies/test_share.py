"""What a model with shared blocks starts from, whatever the whole one had learned."""

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.mask import Mask
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.sharing import Sharing
from fewtune.deltas.subset import Subset
from fewtune.errors import SpecError
from fewtune.model import TunedModel
from fewtune.strategies.share import Share, shared

TASK = ft.Task.classification(["neg", "pos"])
TEXTS = [Example({"text": text}) for text in ("great fun", "terrible, a mess", "a joy")]
TEACHERS = {
    "frozen": (),
    "lora": (LoRA(rank=2, sites=("query", "ffn_out")),),
    "adapter": (Adapter(size=3), Prefix(length=2)),
    "all": (Subset("all"),),
    "last": (Subset("last"),),
    "biases": (Subset("biases"),),
    "shallow": (Shallow(2), LoRA(rank=2)),
}


def made(family, *deltas):
    model = TunedModel.assemble(Backbone(*tiny.model(family), name=family), TASK, ft.Head(), seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.reader.weights.values():
            weight += torch.randn(weight.shape, generator=drawn)
        for delta in deltas:
            model.deltas += (delta.install(model.backbone, generator=drawn),)
            for weight in model.deltas[-1].weights.values():
                weight += torch.randn(weight.shape, generator=drawn) * 0.1
    return model


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_with_full_rank_it_starts_as_the_whole_model_and_is_saved_and_read(family, name):
    model = made(family, *TEACHERS[name])
    whole = model.raw_scores(TEXTS)
    learner = Backbone(*tiny.model(family), name=family)
    small = shared(model, Sharing(groups=1, rank=32), learner)
    found = small.raw_scores(TEXTS)
    torch.testing.assert_close(found, whole, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.raw_scores(TEXTS), whole)
    saved = [(one.delta, one.state_dict()) for one in small.deltas]
    small.remove()
    again = []
    for spec, state in saved:
        again.append(spec.install(learner, generator=torch.Generator().manual_seed(9)))
        again[-1].load_state_dict(state)
    assert torch.equal(small.raw_scores(TEXTS), found)
    low = shared(model, Sharing(groups=1, rank=1), Backbone(*tiny.model(family), name=family)).raw_scores(TEXTS)
    assert (low - whole).abs().max() > 1e-2, "a lower rank leaves something to learn"


def test_what_cannot_share_is_refused():
    learner = Backbone(*tiny.model("bert"), name="bert")
    with pytest.raises(SpecError, match="share: expected deltas that suit shared blocks, got pruned weights"):
        shared(made("bert", Mask()), Sharing(groups=1), learner)
    with pytest.raises(SpecError, match="share.groups: expected fewer groups"):
        shared(made("bert"), Sharing(groups=3), learner)
    with pytest.raises(SpecError, match="sharing.groups"):
        Share(groups=0)
    with pytest.raises(SpecError, match="temperature"):
        Share(temperature=0.0)
