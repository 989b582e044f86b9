"""Costs are those of the files that are written and of the weights that are trained; what a family refuses is said."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fewtune import artifact, costs
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.costs import Cost, Refused, Step
from fewtune.deltas import DELTAS
from fewtune.errors import BackboneError, SpecError
from fewtune.model import TunedModel
from fewtune.readout.channel import Channel
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.settings import DEFAULT_DELTAS
from fewtune.tasks.task import Task

STEP = Step(length=8, batch_size=2)


def made(family):
    return Backbone(*tiny.model(family), name=family)


def compare(backbone, *texts, **options):
    wanted = {" + ".join(texts): tuple(map(DELTAS.from_text, texts))} if texts else None
    return costs.compare(backbone, wanted, step=STEP, **options)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@pytest.mark.slow
@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.tuples(shapes, st.sampled_from([torch.float32, torch.bfloat16])))
)
def test_the_size_of_a_file_is_that_of_the_file(state):
    state = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in state.items() if name != "__metadata__"}
    assert costs.file_bytes(state) == (len(save(state)) if state else 0)


@pytest.mark.parametrize("texts", [("lora:rank=3",), ("subset:part=all",), ("adapter:size=4", "subset:part=norms"), ("soft-prompt",)])
@pytest.mark.parametrize("readout", [Cloze(), Channel(), Head()])
def test_a_task_takes_the_bytes_of_the_artifacts_tensors(tmp_path, texts, readout):
    backbone = made("llama" if readout.reverses else "bert")
    (cost,) = compare(backbone, *texts, readout=readout).methods
    model = TunedModel.assemble(backbone, Task(labels=("no", "yes")), readout)
    model.deltas = tuple(DELTAS.from_text(text).install(backbone, generator=torch.Generator()) for text in texts)
    artifact.save(model, tmp_path / "model")
    assert cost.task_bytes == sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert cost.trained_parameters == cost.stored_parameters == model.trained_parameters
    assert cost.delta == " + ".join(texts) and cost.seconds.step > 0 and cost.memory.total > 4 * backbone.parameters


def test_low_rank_updates_are_counted_by_formula():
    """r (inputs + outputs) at query and value of each block; two labels' rows of width D and biases in the head."""
    backbone = made("bert")
    found = compare(backbone, "lora:rank=4", readout=Head())
    (cost,) = found.methods
    assert cost.trained_parameters == 3 * 2 * 4 * (32 + 32) + 2 * 32 + 2
    assert found.share(cost) == cost.trained_parameters / backbone.parameters


def test_a_hundred_tasks_are_one_backbone_and_a_hundred_artifacts():
    backbone = made("llama")
    copy = costs.file_bytes(dict(backbone.model.named_parameters()))
    found = compare(backbone, "lora")
    plain = found.to_dict()
    (method,) = plain["methods"]
    assert copy >= 4 * backbone.parameters
    assert method["bytes"]["hundred_tasks"] == copy + 100 * method["bytes"]["task"]
    assert method["bytes"]["hundred_copies"] == plain["bytes"]["hundred_copies"] == 100 * copy
    assert plain["backbone"] == "llama" and plain["backbone_parameters"] == backbone.parameters and plain["readout"] == "cloze"


@pytest.mark.slow
def test_without_a_name_the_usual_methods_stand_side_by_side():
    backbone = made("llama")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    found = compare(backbone)
    assert [method.delta for method in found.methods] == list(costs.usual())
    assert {text.partition(":")[0] for text in costs.usual()} >= {"lora", "subset", "adapter", "ia3", "soft-prompt"}
    assert DEFAULT_DELTAS in costs.usual().values()
    (refused,) = [method for method in found.methods if isinstance(method, Refused)]
    assert refused.delta == "subset:part=biases" and "expected biases to train" in refused.reason
    first = found.methods[0]
    assert isinstance(first, Cost) and first.trained_parameters == backbone.parameters
    after = backbone.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert backbone.precision == "float32"


@pytest.mark.parametrize("text", [*costs.usual(), "lora:rank=3,alpha=4.0,sites=key+ffn_out,rslora=true", "soft-prompt:length=0,text=good"])
def test_methods_are_written_as_they_are_read(text):
    for delta in map(DELTAS.from_text, text.split(" + ")):
        assert DELTAS.from_text(DELTAS.to_text(delta)) == delta
    assert DELTAS.to_text(DELTAS.from_text("lora:rank=8,top=0.5")) == "lora:top=0.5"


def test_what_is_named_and_refused_is_an_error():
    with pytest.raises(BackboneError, match="biases"):
        compare(made("llama"), "subset:part=biases")
    backbone = made("llama")
    with pytest.raises(BackboneError, match="biases"):
        compare(backbone, "lora", "subset:part=biases")
    assert "edits" not in " ".join(backbone.model.state_dict())


@pytest.mark.parametrize("length", [0, 513])
def test_a_step_must_fit_the_backbone(length):
    with pytest.raises(SpecError, match="--length"):
        costs.compare(made("llama"), step=Step(length=length, batch_size=1))


def test_trained_vectors_in_front_take_room():
    with pytest.raises(SpecError, match="1 to 492"):
        costs.compare(made("llama"), {"soft-prompt": (DELTAS.from_text("soft-prompt"),)}, step=Step(length=500, batch_size=1))
