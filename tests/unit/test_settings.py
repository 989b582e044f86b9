"""What is settled where the user left something open."""

from dataclasses import replace

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.readout.cloze import Cloze
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.similarity import Similarity
from fewtune.settings import Settings, beside_each_other, recipe_of

TASK = ft.Task.classification(["no", "yes"], words={"no": "bad", "yes": ("good", "fine")})


def deltas(*wanted):
    backbone = Backbone(*tiny.model("bert"), name="tiny")
    return recipe_of(TASK, backbone, Settings(deltas=wanted)).deltas


def test_labels_in_a_starting_text_are_the_label_words():
    assert deltas(SoftPrompt(length=0, text="Is it {labels}?")) == (SoftPrompt(length=0, text="Is it bad good fine?"),)
    assert deltas(Prefix(length=2, text="{labels}"))[0].text == "bad good fine"


def test_other_texts_and_deltas_stay_as_they_are():
    wanted = (SoftPrompt(text="plain"), SoftPrompt(length=3), ft.LoRA(rank=2))
    assert deltas(*wanted) == wanted
    assert deltas() == ()


def readout(words, *, family="llama", kept=None, head=True):
    backbone = Backbone(*tiny.model(family, head=head), name="tiny")
    task = ft.Task.classification(["no", "yes"], words=words)
    return recipe_of(task, backbone, Settings(readout=kept)).readout


def test_whole_words_are_read_where_one_token_does_not_hold_them():
    assert readout({"no": "dull", "yes": ("great", "positive")}) == Cloze()
    for words in ({"no": "dull", "yes": "great fun"}, {"no": "dull mess", "yes": "dull joy"}):
        assert readout(words) == readout(words, family="bert") == Likelihood(per="token")
        assert readout(words, kept=Cloze()) == Cloze()


def test_an_encoder_without_an_lm_head_reads_no_words():
    assert readout({"no": "dull", "yes": "great"}, family="t5", head=False) == Similarity()


def test_a_decoder_reads_words_as_others_do():
    assert readout({"no": "sports", "yes": "great"}, family="t5") == Cloze()
    assert readout({"no": "dull", "yes": "great"}, family="t5") == Likelihood(per="token")


def test_a_language_model_and_an_encoder_answer_where_labels_are_all_there_is():
    way = Settings(strategy="zeroshot")
    task = ft.Task.classification(["a", "b"], description="Which is it?")
    assert [one.backbones for one in beside_each_other(task, way)] == [("smollm2-135m",), ("minilm-l6",)]
    templated = ft.Task.classification(["a", "b"], template="{text} {slot}")
    for named, own in ((templated, way), (task, replace(way, readout=Cloze())), (task, replace(way, backbones=("x",)))):
        assert beside_each_other(named, own) == [own]
    assert beside_each_other(ft.Task.regression(low=0, high=1), way) == [way]
    assert way.backbone == "smollm2-135m"
