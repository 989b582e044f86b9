"""The language-modelling loss of every family with an LM head against transformers' own, which is given the same batch with labels."""

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.data.example import Example
from fewtune.model import TunedModel
from fewtune.prompt.encode import Encoder
from fewtune.prompt.template import Template
from fewtune.readout.cloze import Cloze
from fewtune.strategies.adapting import Language

TEXTS = (
    "a dull, lifeless mess.",
    "great fun and a joy from start to finish!",
    "was it fun? no, it was a terrible mess from start to finish, a mess",
    "[MASK] </s> <|endoftext|>",
)
IGNORED = -100
WITH_HEAD = [name for name, family in FAMILIES.items() if family.objective != "seq2seq"]


def language(family):
    backbone = Backbone(*tiny.model(family), name=family)
    task = ft.Task.classification(["no", "yes"], words={"no": "terrible", "yes": "great"})
    model = TunedModel.assemble(backbone, task, Cloze())
    encoder = Encoder(backbone.tokenizer, causal=backbone.causal, max_length=64)
    prompts = [Template.parse("{text}").render(Example({"text": text}).fields) for text in TEXTS]
    return Language.of(model, encoder.encode(prompts), batch_size=len(TEXTS), seed=5)


def labels(batch, asked, *, causal):
    """As transformers' own collators make them: every real token, which the model itself shifts; or the masked tokens alone."""
    if causal:
        return batch.ids_BT.masked_fill(batch.mask_BT == 0, IGNORED)
    labels = torch.full_like(batch.ids_BT, IGNORED).flatten()
    labels[asked.places_N] = asked.targets_N
    return labels.view_as(batch.ids_BT)


@pytest.mark.parametrize("family", WITH_HEAD)
def test_the_loss_equals_that_of_transformers(family):
    learned = language(family)
    plain, _ = tiny.model(family)
    batch, asked = learned.at(0)
    causal = learned.model.backbone.causal
    assert bool((batch.mask_BT == 0).any()), "nothing was padded"
    types = {} if batch.types_BT is None else {"token_type_ids": batch.types_BT}
    with torch.no_grad():
        expected = plain(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=labels(batch, asked, causal=causal), **types).loss
        found = learned.loss((batch, asked))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(asked.places_N) == (batch.mask_BT.sum().item() - len(TEXTS) if causal else len(asked.targets_N)) > 0


def test_families_that_can_and_cannot_are_seen():
    assert set(FAMILIES) - set(WITH_HEAD) == {"t5"}
