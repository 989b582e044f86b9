"""A beginning that rows share, computed once: equal to whole rows in every causal family, with deltas in the stack."""

import pytest
import torch

import fewtune as ft
from fewtune.backbone import families, tiny
from fewtune.backbone.attention import NAME
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.readout.likelihood import Likelihood

CAUSAL = ("gemma", "gpt2", "llama", "qwen2", "qwen3")
WINDOWED = ("gemma3_text",)
DELTAS = [
    (),
    (LoRA(rank=2),),
    (Adapter(size=3), IA3()),
    (Subset("last"),),
    (Prefix(length=3),),
    (Prefix(length=2, top=0.4),),
    (Prefix(length=4, zero=True), LoRA(rank=1)),
]
BEGINNING = 7


def made(family, *, double=True):
    model, tokenizer = tiny.model(family)
    return Backbone(model.double() if double else model, tokenizer, name=family)


def moved(backbone, deltas):
    """The deltas installed, with weights that training could have led to."""
    installed = [delta.install(backbone, generator=torch.Generator().manual_seed(0)) for delta in deltas]
    with torch.no_grad():
        for one in installed:
            for number, weight in enumerate(one.weights.values()):
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.3
    for one in installed:
        for weight in one.weights.values():
            weight.data = weight.data.to(next(backbone.model.parameters()).dtype)
    return installed


def batch():
    ids_BT = torch.randint(10, 90, (3, BEGINNING + 6), generator=torch.Generator().manual_seed(1))
    ids_BT[:, :BEGINNING] = ids_BT[0, :BEGINNING]
    mask_BT = (torch.arange(BEGINNING + 6) < BEGINNING + torch.tensor([6, 3, 5])[:, None]).long()
    return ids_BT, mask_BT


def both(backbone):
    """(states of what comes after the beginning in whole rows, the same where the beginning was computed once)."""
    ids_BT, mask_BT = batch()
    after = mask_BT[:, BEGINNING:].bool()
    with torch.no_grad():
        whole = backbone.forward(ids_BT, mask_BT).hidden_BTD[:, BEGINNING:][after]
        with backbone.after(ids_BT[0, :BEGINNING].tolist()):
            once = backbone.forward(ids_BT[:, BEGINNING:], mask_BT[:, BEGINNING:]).hidden_BTD[after]
    return whole, once


def test_every_causal_family_is_seen():
    assert sorted(name for name, family in families.FAMILIES.items() if family.objective == "causal") == sorted(CAUSAL + WINDOWED)
    assert [name for name in tiny.FAMILIES if made(name).goes_on] == list(CAUSAL)


@pytest.mark.parametrize("deltas", DELTAS, ids=str)
@pytest.mark.parametrize("family", CAUSAL)
def test_equals_whole_rows(family, deltas):
    backbone = made(family)
    bare, _ = both(backbone)
    installed = moved(backbone, deltas)
    assert backbone.goes_on
    whole, once = both(backbone)
    torch.testing.assert_close(once, whole, atol=1e-6, rtol=1e-6)
    assert not deltas or (whole - bare).abs().max() > 1e-3
    for one in reversed(installed):
        one.remove()


@pytest.mark.parametrize("family", CAUSAL)
def test_what_stands_in_front_is_seen_and_gone_afterwards(family):
    backbone = made(family, double=False)
    ids_BT, mask_BT = batch()
    plain = backbone.forward(ids_BT, mask_BT).hidden_BTD
    before = backbone.model.config._attn_implementation
    with backbone.after([11, 12, 13]):
        assert backbone.model.config._attn_implementation == NAME
        assert (backbone.forward(ids_BT, mask_BT).hidden_BTD - plain)[mask_BT.bool()].abs().max() > 1e-3
    assert torch.equal(backbone.forward(ids_BT, mask_BT).hidden_BTD, plain)
    assert backbone.model.config._attn_implementation == before
    with pytest.raises(ZeroDivisionError), backbone.after([11]):
        raise ZeroDivisionError
    with backbone.after([]):
        assert torch.equal(backbone.forward(ids_BT, mask_BT).hidden_BTD, plain)


def test_rows_of_an_entry_go_on_after_what_its_own_deltas_make_of_the_beginning():
    backbone = made("llama")
    with backbone.installing(4):
        moved(backbone, (LoRA(rank=2),))
        ids_BT, mask_BT = batch()
        route_B = torch.full((3,), 4)
        with torch.no_grad():
            whole = backbone.forward(ids_BT, mask_BT, route_B=route_B).hidden_BTD[:, BEGINNING:]
            with backbone.after(ids_BT[0, :BEGINNING].tolist()):
                once = backbone.forward(ids_BT[:, BEGINNING:], mask_BT[:, BEGINNING:], route_B=route_B).hidden_BTD
    torch.testing.assert_close(once[mask_BT[:, BEGINNING:].bool()], whole[mask_BT[:, BEGINNING:].bool()], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_it_is_not_done_where_it_would_give_something_else(rope):
    backbone = made("llama")
    vectors = moved(backbone, (SoftPrompt(length=2),))
    assert not backbone.goes_on
    vectors[0].remove()
    assert backbone.goes_on
    backbone.model.config.rope_parameters = {**backbone.model.config.rope_parameters, "rope_type": rope}
    assert not backbone.goes_on


# A model that shows demonstrations

ROWS = [("great fun", "positive"), ("a dull mess", "negative"), ("good and great", "positive"), ("terrible lifeless", "negative")]
TASK = ft.Task.classification(
    ["negative", "positive"], template="Review: {text}\nSentiment: {slot}", words={"negative": "terrible", "positive": "great"}
)
QUERIES = [Example({"text": text}) for text in ("a joy from start to finish", "dull", "great fun", "what is the capital", "a DULL  mess")]


class Whole(Backbone):
    """Never computes a beginning by itself; otherwise the same."""

    goes_on = False


class Counting(Backbone):
    """Counts the tokens that go through the stack."""

    tokens = 0

    def forward(self, ids_BT, *arguments, **options):
        self.tokens += ids_BT.numel()
        return super().forward(ids_BT, *arguments, **options)


@pytest.mark.parametrize("readout", [ft.Cloze(), Likelihood()], ids=str)
@pytest.mark.parametrize("deltas", [(), (LoRA(rank=2),), (Prefix(length=2),), (SoftPrompt(length=2),)], ids=str)
@pytest.mark.parametrize("family", [*CAUSAL, *WINDOWED])
def test_scores_are_those_of_whole_prompts(family, deltas, readout):
    spec = ft.Demonstrations(similar=1, per_label=2, draws=3)
    scores, tokens = [], []
    for kind in (Whole, Counting):
        model, tokenizer = tiny.model(family)
        backbone = kind(model, tokenizer, name=family)
        options = {"demonstrations": spec, "calibration": ft.Uncalibrated(), "readout": readout}
        shown = ft.fit(TASK, ROWS, backbone=backbone, strategy="zeroshot", **options)
        moved(backbone, deltas)
        before = getattr(backbone, "tokens", 0)
        scores.append(shown.raw_scores(QUERIES))
        tokens.append(getattr(backbone, "tokens", 0) - before)
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)  # float32, unlike above
    lengths = [len(row.ids) for _, rows in shown.asking.encoded(QUERIES) for row in rows]
    if family in CAUSAL and not any(isinstance(delta, SoftPrompt) for delta in deltas):
        assert tokens[1] < 0.75 * sum(lengths)  # two of the five are examples themselves and see others
    else:
        assert tokens[1] >= sum(lengths)


LONG = "Read the review and say in one word whether whoever wrote it liked what was seen, whatever else is said: {text}\nSentiment: {slot}"


@pytest.mark.parametrize("readout", [ft.Cloze(), Likelihood()], ids=str)
def test_the_templates_beginning_is_computed_once_for_all_rows(readout):
    words = {"negative": "terrible", "positive": "great fun" if isinstance(readout, Likelihood) else "great"}
    task = ft.Task.classification(["negative", "positive"], template=LONG, words=words)
    scores, counts = [], []
    for kind in (Whole, Counting):
        model, tokenizer = tiny.model("llama")
        backbone = kind(model, tokenizer, name="llama")
        asked = ft.fit(task, ROWS, backbone=backbone, strategy="zeroshot", calibration=ft.Uncalibrated(), readout=readout)
        before = getattr(backbone, "tokens", 0)
        scores.append(asked.raw_scores(QUERIES))
        counts.append(getattr(backbone, "tokens", 0) - before)
        assert torch.equal(asked.raw_scores(QUERIES), scores[-1])  # the same bytes, run for run
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    assert counts[1] < 0.6 * sum(len(row.ids) for row in asked.asking.rows(QUERIES, 0))


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_head_gets_whole_rows(pool):
    task = ft.Task.classification(["negative", "positive"], template=LONG.removesuffix("\nSentiment: {slot}"))
    scores, counts = [], []
    for kind in (Whole, Counting):
        model, tokenizer = tiny.model("llama")
        backbone = kind(model, tokenizer, name="llama")
        options = ft.FitOptions(steps=1)
        headed = ft.fit(task, ROWS, backbone=backbone, strategy="supervised", deltas=[], readout=ft.Head(pool=pool), options=options)
        before = getattr(backbone, "tokens", 0)
        scores.append(headed.raw_scores(QUERIES))
        counts.append(getattr(backbone, "tokens", 0) - before)
    assert torch.equal(scores[0], scores[1])
    assert counts[1] >= sum(len(row.ids) for row in headed.asking.rows(QUERIES, 0))
