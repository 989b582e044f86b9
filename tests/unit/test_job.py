"""What the job settles where the user left something open."""

import fewtune as ft
from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt

TASK = ft.Task.classification(["no", "yes"], words={"no": "bad", "yes": ("good", "fine")})


def deltas(*wanted):
    backbone = Backbone(*tiny.model("bert"), name="tiny")
    return job.recipe_of(TASK, backbone, job.Settings(deltas=wanted)).deltas


def test_labels_in_a_starting_text_are_the_label_words():
    assert deltas(SoftPrompt(length=0, text="Is it {labels}?")) == (SoftPrompt(length=0, text="Is it bad good fine?"),)
    assert deltas(Prefix(length=2, text="{labels}"))[0].text == "bad good fine"


def test_other_texts_and_deltas_stay_as_they_are():
    wanted = (SoftPrompt(text="plain"), SoftPrompt(length=3), ft.LoRA(rank=2))
    assert deltas(*wanted) == wanted
    assert deltas() == ()
