"""The masked LM that comes with the package: pulled by its name, it fills gaps, and reads label words."""

import json

import pytest
import torch

import fewtune as ft
from fewtune.backbone import catalogue, update
from fewtune.completion import fill, usual
from fewtune.train.language import Masking, language_loss

pytestmark = pytest.mark.slow
NAME = "minilm-l6-mlm"
TEXTS = (
    "The doctor told him to stay in bed and to drink a lot of water until the fever was gone.",
    "She closed the door behind her and walked slowly down the stairs into the garden.",
    "We hold these truths to be self-evident, that all men are created equal.",
    "The acting is good, but the story is far too long and the ending makes no sense at all.",
)


@pytest.fixture(scope="module")
def backbone():
    return ft.load_backbone(NAME)


def test_it_is_the_update_of_the_plm_that_it_names(backbone):
    assert usual("a [MASK]") == NAME and backbone.has_lm_head and not backbone.causal
    held = update.read(catalogue.CATALOGUE[NAME].change)
    assert held.about.base == "minilm-l6" and held.about.fingerprint == ft.load_backbone("minilm-l6").fingerprint
    assert backbone.parameters == catalogue.CATALOGUE[NAME].parameters
    assert catalogue.CATALOGUE[NAME].change.stat().st_size < 8e6


def test_it_knows_far_more_of_english_than_how_often_words_are(backbone):
    tokenizer = backbone.tokenizer
    batch = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    masking = Masking(tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids), len(tokenizer))
    losses = []
    with torch.no_grad():
        for seed in range(20):
            asked = masking.hide(batch["input_ids"], batch["attention_mask"], seed=seed)
            states_ND = backbone.forward(asked.ids_BT, batch["attention_mask"]).hidden_BTD.flatten(0, 1)[asked.places_N]
            losses.append(language_loss(states_ND, asked.targets_N, lambda part_ND: backbone.lm_logits(part_ND, None)).item())
    assert sum(losses) / len(losses) < 4


@pytest.mark.parametrize(("text", "word"), [("She opened the [MASK] and went out.", "door"), ("He did not [MASK] what to say.", "know")])
def test_it_fills_gaps(backbone, text, word):
    (gap,) = fill(backbone, text, top=5)
    assert word in [candidate.text.strip() for candidate in gap]


def test_the_command_takes_it_where_a_word_is_missing(fewtune):
    code, out, _ = fewtune("complete", "She opened the [MASK] and went out.", "--json")
    assert code == 0 and json.loads(out)["backbone"] == NAME
