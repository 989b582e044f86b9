"""What heads and neurons matter, against the loss itself; what a narrower model starts from, whatever the whole one had learned."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import plm
from fewtune.backbone import tiny, trim, turns
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.data.example import Example, Split
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.delta import install_saved
from fewtune.deltas.int8 import Int8
from fewtune.deltas.lora import LoRA
from fewtune.deltas.mask import Mask
from fewtune.deltas.narrow import Narrow, chosen
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, DataError, SpecError
from fewtune.model import TunedModel
from fewtune.strategies.narrow import Gate, Narrowing, importance
from fewtune.strategies.narrower import Plan
from fewtune.train.fit import Session

TASK = ft.Task.classification(["neg", "pos"])
ROWS = tuple(Example({"text": text}, label) for text, label in (("great fun", "pos"), ("terrible, a mess", "neg"), ("a joy", "pos")))
TEXTS = [*ROWS, Example({"text": "science and technology"})]
PARTS = ("heads", "ffn")
EVERYWHERE = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")


class Factor(Edit):
    """What is read of some numbers, times others."""

    def __init__(self, factor_N):
        super().__init__()
        self.factor_N = factor_N

    def before(self, inputs):
        return inputs * self.factor_N


def made(family, *deltas, seed=0):
    backbone = Backbone(*tiny.model(family), name=f"tiny {family}")
    model = TunedModel.assemble(backbone, TASK, ft.Head(), seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.reader.weights.values():
            weight += torch.randn(weight.shape, generator=drawn)
        installed = []
        for delta in deltas:
            installed.append(delta.install(backbone, generator=drawn))
            for weight in installed[-1].weights.values():
                weight += torch.randn(weight.shape, generator=drawn) * 0.1
    model.deltas = tuple(installed)
    return model


def losses(model, row):
    """The loss of one row."""
    batch = model.asking.collate(model.asking.rows([row], 0), 0)
    aim = torch.tensor([TASK.labels.index(row.label)])
    with torch.no_grad():
        return model.reader.loss(model.output(batch), batch, aim, torch.zeros(2)).item()


@pytest.mark.parametrize(
    ("family", "delta"), [("bert", LoRA(sites=EVERYWHERE)), ("llama", IA3()), ("gpt2", Subset("norms")), ("albert", LoRA())]
)
def test_a_score_is_how_much_the_loss_changes_with_the_unit(family, delta):
    model, step = made(family, delta), 1e-2
    found = importance(model, ROWS, PARTS, batch_size=2)
    assert set(found) == {(part, block) for part in PARTS for block in range(len(model.backbone.blocks))}
    for part, block, unit in (("heads", 0, 1), ("heads", 1, 0), ("ffn", 0, 5), ("ffn", 1, 77)):
        path, size = trim.reader(model.backbone, part, block)
        changes = []
        for row in ROWS:
            ends = []
            for value in (1 + step, 1 - step):
                factor_U = torch.ones(trim.units(model.backbone, part, block))
                factor_U[unit] = value
                undo = model.backbone.edit(path, Factor(factor_U.repeat_interleave(size)))
                ends.append(losses(model, row))
                undo()
            changes.append(abs(ends[0] - ends[1]) / (2 * step))
        assert found[part, block][unit].item() == pytest.approx(sum(changes) / len(ROWS), rel=0.03, abs=3e-4)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_scores_are_the_same_whatever_rows_share_a_batch(family):
    model = made(family, LoRA())
    rows = (*ROWS, Example({"text": "great fun and a joy " * 12}, "pos"), Example({"text": "a dull mess " * 15}, "neg"))
    alone, together = (importance(model, rows, PARTS, batch_size=size) for size in (1, 16))
    batch = model.asking.collate(model.asking.rows(rows, 0), 0)
    assert len(turns.by_length(batch.mask_BT)) > 1
    for key, scores_U in alone.items():
        torch.testing.assert_close(together[key], scores_U, atol=1e-5, rtol=1e-4)


def test_factors_are_each_rows_own_and_scores_of_what_is_not_read_are_zero():
    gate = Gate("path", 2)
    inputs_BTN = torch.tensor([[[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]]])
    (gate.before(inputs_BTN) * torch.tensor([1.0, 1.0, 0.0, -1.0])).sum().backward()
    (factor_BU,) = gate.taken()
    assert factor_BU.grad.tolist() == [[3.0, -4.0], [11.0, -8.0]] and gate.taken() == []
    model = made("bert")
    before = {name: weight.clone() for name, weight in model.backbone.model.named_parameters()}
    with torch.no_grad():
        model.backbone.blocks[1].output.dense.weight[:, 7] = 0.0
    found = importance(model, ROWS, ("ffn",))
    assert found["ffn", 1][7] == 0.0 < found["ffn", 1][8]
    assert all(weight.grad is None for weight in model.backbone.model.parameters())
    assert set(dict(model.backbone.model.named_parameters())) == set(before)


def test_rows_are_scored_with_what_is_shown_beside_them():
    task = ft.Task(("neg", "pos"), ("text",), ("{text} It was {slot}",), {"neg": ("terrible",), "pos": ("great",)})
    rows = (*ROWS, Example({"text": "a joy"}, "pos"), Example({"text": "lifeless"}, "neg"))
    model = TunedModel.assemble(Backbone(*tiny.model("llama"), name="tiny llama"), task, ft.Cloze())
    spec = ft.Demonstrations(per_label=1, similar=1.0, draws=1)
    shown = replace(model, demonstrations=spec.of(rows, task, seed=1, in_front=True))
    assert not torch.equal(importance(model, rows, ("ffn",))["ffn", 0], importance(shown, rows, ("ffn",))["ffn", 0])


TEACHERS = {
    "frozen": (),
    "lora": (LoRA(rank=2, sites=EVERYWHERE),),
    "dora": (LoRA(rank=2, sites=("attention_in", "ffn_in"), dora=True),),
    "ia3": (IA3(outputs=("query", "value", "ffn_in"), inputs=("ffn_out", "attention_out")),),
    "adapter": (Adapter(size=3, at=("attention", "ffn"), parallel=True),),
    "all": (Subset("all"),),
    "biases": (Subset("norms"), LoRA(rank=1)),
    "last": (Subset("last"),),
    "prefix": (Prefix(length=2), SoftPrompt(length=2)),
    "shallow": (Shallow(2), LoRA(rank=2)),
    "narrow": (Narrow(heads=0.75, ffn=0.7), LoRA(rank=2)),
    "numbers": (Narrow(heads=1.0, ffn=0.7, trained=False), Subset("all")),
}
FAST = {("bert", name) for name in TEACHERS} | {("gpt2", "all"), ("gpt2", "lora"), ("llama", "lora")}
CASES = [
    pytest.param(family, name, marks=() if (family, name) in FAST else pytest.mark.slow)
    for family in ("bert", "gpt2", "llama", "albert", "modernbert", "mpnet", "deberta-v2", "qwen3", "gemma3_text")
    for name in TEACHERS
    if name != "prefix" or family not in ("mpnet", "deberta-v2")
    if name != "shallow" or family != "albert"
]


@pytest.mark.slow
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_narrower_model_starts_as_the_whole_one_with_the_rest_masked(family, name, trained):
    model = made(family, *TEACHERS[name])
    whole = model.raw_scores(TEXTS)
    blocks = range(len(model.backbone.blocks))
    counts = {(part, block): trim.units(model.backbone, part, block) for part in PARTS for block in blocks}
    drawn = torch.Generator().manual_seed(1)
    kept = chosen({key: torch.rand(count, generator=drawn) for key, count in counts.items()}, {"heads": 0.5, "ffn": 0.4})
    undo = []
    for (part, block), kept_K in kept.items():
        path, size = trim.reader(model.backbone, part, block)
        mask_U = torch.zeros(counts[part, block])
        mask_U[kept_K.long()] = 1.0
        undo.append(model.backbone.edit(path, Factor(mask_U.repeat_interleave(size))))
    expected = model.raw_scores(TEXTS)
    for step in reversed(undo):
        step()
    learner = Backbone(*tiny.model(family), name=f"tiny {family}")
    narrower = Plan.of(model, kept, Narrow(0.5, 0.4, trained=trained)).on(learner)
    torch.testing.assert_close(narrower.raw_scores(TEXTS), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, whole, atol=1e-3)
    torch.testing.assert_close(model.raw_scores(TEXTS), whole, atol=0, rtol=0)
    assert sum(isinstance(one.delta, Narrow) for one in narrower.deltas) == 1
    states = [one.state_dict() for one in narrower.deltas]
    specs = [one.delta for one in narrower.deltas]
    found = narrower.raw_scores(TEXTS)
    narrower.remove()
    again = []
    for spec, state in zip(specs, states, strict=True):
        again.append(spec.install(learner, generator=torch.Generator().manual_seed(9)))
        again[-1].load_state_dict(state)
    assert torch.equal(narrower.raw_scores(TEXTS), found)


@pytest.mark.parametrize("before", [Narrow(heads=0.5, ffn=1.0), Narrow(heads=0.5, ffn=1.0, trained=False), Narrow(heads=0.75, ffn=0.99)])
def test_what_was_narrower_before_in_one_part_stays_so_and_is_read_again(before):
    model = made("bert", before, LoRA(rank=2))
    kept = {("ffn", block): torch.arange(40 + block, dtype=torch.int32) for block in range(3)}
    learner = Backbone(*tiny.model("bert"), name="tiny bert")
    small = Plan.of(model, kept, Narrow(1.0, 1 / 3, trained=False)).on(learner)
    found, saved = small.raw_scores(TEXTS), [(one.delta, one.state_dict(), "here") for one in small.deltas]
    heads = [kept_K.tolist() for (part, _), kept_K in small.deltas[0].kept.items() if part == "heads"]
    assert heads == [kept_K.tolist() for (part, _), kept_K in model.deltas[0].kept.items() if part == "heads"]
    assert small.deltas[0].delta.trained == before.trained
    small.remove()
    install_saved(learner, saved)
    assert torch.equal(small.raw_scores(TEXTS), found)


def test_what_cannot_be_handed_on_and_what_is_not_there_is_refused(tmp_path):
    model = made("bert", Mask(share=0.5))
    plan = Plan.of(model, {("ffn", 0): torch.tensor([0, 2, 3], dtype=torch.int32)}, Narrow(1.0, 0.5))
    learner = Backbone(*tiny.model("bert"), name="tiny bert")
    with pytest.raises(SpecError, match="narrow: expected deltas of which a part suits narrower blocks"):
        plan.on(learner)
    assert not learner.claims and torch.equal(learner.blocks[0].output.dense.weight, model.backbone.blocks[0].output.dense.base.weight)
    with pytest.raises(SpecError, match="got DoRA at ffn_out, whose directions"):
        Plan.of(made("bert", LoRA(sites=("query", "ffn_out"), dora=True)), plan.kept, Narrow(1.0, 0.5))
    with pytest.raises(DataError, match="labelled rows.*which heads and neurons matter"):
        Narrowing().run(made("bert"), Split(unlabeled=ROWS), session=Session())
    with pytest.raises(SpecError, match="narrow: expected matrices that can be trained, got some in eight bits.*--by narrow --by int8"):
        Narrowing().run(made("bert", Int8(), LoRA()), Split(train=ROWS), session=Session())
    with pytest.raises(BackboneError, match="fewer heads"):
        Narrowing().run(made("t5"), Split(train=ROWS), session=Session())
    for odd in ({"rounds": 0}, {"heads": 0.0}, {"temperature": 0.0}, {"heads": 1.0, "ffn": 1.0}):
        with pytest.raises(SpecError):
            Narrowing(**odd)


@pytest.mark.slow
def test_rounds_end_at_the_shares_and_share_the_steps(tmp_path):
    said = []
    folder = str(tiny.save("bert", tmp_path / "plm"))
    model = TunedModel.assemble(plm.load(folder), TASK, ft.Head(), seed=0)
    way = Narrowing(heads=0.5, ffn=0.25, rounds=3, steps=6)
    small = way.run(model, Split(train=ROWS), session=Session(say=said.append))
    (narrowed,) = small.deltas
    counts = {part: sum(len(kept_K) for (own, _), kept_K in narrowed.kept.items() if own == part) for part in PARTS}
    assert counts == {"heads": 6, "ffn": 96} and narrowed.delta == Narrow(0.5, 0.25)
    assert [line for line in said if "remain" in line] == [
        "10 of 12 heads and 288 of 384 neurons remain in 3 blocks.",
        "8 of 10 heads and 192 of 288 neurons remain in 3 blocks.",
        "6 of 8 heads and 96 of 192 neurons remain in 3 blocks.",
    ]
    assert sum("2 steps" in line for line in said) == 3
    assert small.backbone is not model.backbone and not model.backbone.claims
