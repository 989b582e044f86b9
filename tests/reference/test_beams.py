"""One text for many prompts: against every text there is, and by a model that was taught one."""

import itertools

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.beams import agreed
from fewtune.data.example import Example, Split
from fewtune.errors import BackboneError
from fewtune.prompt import infill
from fewtune.prompt.search import TemplateSearch
from fewtune.prompt.tokens import plain_ids, sentinel
from fewtune.readout.cloze import Cloze
from fewtune.recipe import Recipe
from fewtune.strategies import searching
from fewtune.train.fit import Session

TEXTS = (("a dull mess", "no"), ("lifeless and dull", "no"), ("great fun and joy", "yes"), ("a great film", "yes"))
TRAIN = tuple(Example({"text": text}, label) for text, label in TEXTS)
WORDS = {"no": ("dull",), "yes": ("great",)}
TASK = ft.Task.classification(["no", "yes"], words=WORDS)


def filler():
    return Backbone(*tiny.model("t5"), name="t5")


def logs(backbone, prompt, ids):
    """The log-probability of an answer, by transformers' own forward."""
    model = backbone.model
    with torch.no_grad():
        given = torch.tensor([[backbone.start, sentinel(backbone.tokenizer, 0), *ids[:-1]]])
        found = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=given).logits[0, 1:].log_softmax(-1)
    return float(sum(found[place, token] for place, token in enumerate(ids)))


@pytest.mark.slow
def test_with_room_for_all_the_likeliest_of_all_texts_is_found():
    backbone = filler()
    tokenizer = backbone.tokenizer
    (layout,) = infill.layouts(1, causal=True)
    begin, end = infill.marks(tokenizer, layout)
    prompts = [infill.asked(tokenizer, layout, [text], "great", most=9) for text, _ in TEXTS]
    found = agreed(backbone, prompts, begin=begin, marks=[end], beams=400, most=2)
    special = {*tokenizer.all_special_ids, end}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    every = [(end,), *((token, end) for token in ordinary)]
    scores = {ids: sum(logs(backbone, prompt, ids) for prompt in prompts) / len(prompts) for ids in every}
    best = sorted(scores, key=lambda ids: -scores[ids])
    assert [one.ids for one in found][:20] == best[:20] and len(found) == len(every)
    assert [one.log_probability for one in found[:20]] == pytest.approx([scores[ids] for ids in best[:20]], abs=1e-4)


def test_marks_come_in_their_order_and_the_last_one_ends():
    backbone = filler()
    tokenizer, layout = backbone.tokenizer, infill.layouts(1, causal=False)[0]
    begin, second, end = infill.marks(tokenizer, layout)
    prompts = [infill.asked(tokenizer, layout, [text], "great", most=9) for text, _ in TEXTS]
    found = agreed(backbone, prompts, begin=begin, marks=[second, end], beams=6, most=8)
    assert found and all(one.ids[-1] == end and one.ids.count(second) == 1 == one.ids.count(end) for one in found)
    assert [one.log_probability for one in found] == sorted((one.log_probability for one in found), reverse=True)
    for one in found:
        assert one.log_probability == pytest.approx(sum(logs(backbone, prompt, one.ids) for prompt in prompts) / len(prompts), abs=1e-4)


def taught(said):
    """A filler that was taught to write `said` in every gap."""
    backbone = filler()
    model, tokenizer = backbone.model, backbone.tokenizer
    (layout,) = infill.layouts(1, causal=True)
    begin, end = infill.marks(tokenizer, layout)
    answer = [begin, *plain_ids(tokenizer, said), end]
    rows = [infill.asked(tokenizer, layout, [text], WORDS[label][0], most=99) for text, label in TEXTS]
    for weight in model.parameters():
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for row in itertools.islice(itertools.cycle(rows), 200):
        optimizer.zero_grad()
        model(input_ids=torch.tensor([list(row)]), labels=torch.tensor([answer])).loss.backward()
        optimizer.step()
    for weight in model.parameters():
        weight.requires_grad_(False)
    return Backbone(model, tokenizer, name="t5")


@pytest.mark.slow
def test_what_a_model_was_taught_to_write_in_gaps_is_proposed_first_and_tried(monkeypatch):
    writer = taught("it was")
    judged = Backbone(*tiny.model("llama"), name="llama")
    monkeypatch.setattr(searching.plm, "load", lambda name, *, device: {"t5": writer, "llama": judged}[name])
    recipe = Recipe(TASK, backbone="llama", readout=Cloze(), search=(TemplateSearch(infill="t5", guard=False),), seed=3)
    found = searching.find(recipe, Split(train=TRAIN), judged, Session())["templates"]
    judge = searching.PLMJudge(recipe, TRAIN, judged, Session())
    assert judge.proposed(TASK, "t5", 3)[0] == "{text} it was {slot}" and judge.proposed(TASK, None, 3) == ()
    assert "{text} it was {slot}" in [one.text for one in found.proposals]


@pytest.mark.slow
def test_a_model_that_fills_gaps_proposes_for_itself_and_another_is_refused():
    backbone = filler()
    recipe = Recipe(TASK, backbone="t5", readout=Cloze(), search=(TemplateSearch(guard=False),), seed=3)
    judge = searching.PLMJudge(recipe, TRAIN, backbone, Session())
    proposed = judge.proposed(TASK, None, 5)
    assert 0 < len(proposed) <= 5 and all("{slot}" in text and "{text}" in text for text in proposed)
    tried = {one.text for one in searching.find(recipe, Split(train=TRAIN), backbone, Session())["templates"].proposals}
    assert tried & {text + "." if text.endswith("{slot}") else text for text in proposed}
    judge.writers["llama"] = Backbone(*tiny.model("llama"), name="llama")
    with pytest.raises(BackboneError, match="fills gaps"):
        judge.proposed(TASK, "llama", 5)
