"""Greedy text against a plain loop that gives transformers the whole text again for each token, alone and in batches, with every kind of
delta in the model."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.backbone.generation import generate
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError

WRITING = [family for family in FAMILIES if FAMILIES[family].objective != "masked"]
PROMPTS = [[20, 31, 42, 53, 64, 25], [33, 21], [70], [45, 46, 47, 48, 49, 50, 51, 52, 53]]
MOST = 7
DELTAS = [LoRA(rank=2), IA3(), Subset(part="norms"), SoftPrompt(length=3), Prefix(length=2), Prefix(length=2, zero=True)]


def made(family):
    return Backbone(*tiny.model(family), name=f"tiny {family}")


def never(ids):
    return False


@torch.no_grad()
def by_hand(backbone, prompt, most=MOST, ended=never):
    """(ids, log-probability), the whole text being computed for each token by the backbone's own forward."""
    written, total = [], 0.0
    while len(written) < most and not (written and ended(written)):
        if backbone.seq2seq:
            ids_1T = torch.tensor([prompt])
            output = backbone.forward(ids_1T, torch.ones_like(ids_1T), written_BFJ=torch.tensor([[[backbone.start, *written]]]))
        else:
            ids_1T = torch.tensor([[*prompt, *written]])
            output = backbone.forward(ids_1T, torch.ones_like(ids_1T))
        log_V = backbone.lm_logits(output.hidden_BTD[0, -1], None).log_softmax(-1)
        written.append(int(log_V.argmax()))
        total += float(log_V.max())
    return tuple(written), total


def assert_alike(backbone, found, ended=never):
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids, total = by_hand(backbone, prompt, ended=ended)
        assert one.ids == ids and one.log_probability == pytest.approx(total, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITING)
def test_equals_a_loop_without_a_cache_alone_and_in_a_batch(family):
    backbone = made(family)
    found = generate(backbone, PROMPTS, most=MOST, ended=never)
    assert_alike(backbone, found)
    for size in (1, 3):
        again = generate(backbone, PROMPTS, most=MOST, ended=never, batch_size=size)
        assert [one.ids for one in again] == [one.ids for one in found]
        assert [one.log_probability for one in again] == pytest.approx([one.log_probability for one in found], abs=1e-5)
    assert len({one.ids for one in found}) == len(PROMPTS)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "llama", "qwen3", "t5"])
def test_equals_transformers_own_generation(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    for prompt, one in zip(PROMPTS, generate(backbone, PROMPTS, most=MOST, ended=never), strict=True):
        theirs = plain.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=MOST, min_new_tokens=MOST, do_sample=False, pad_token_id=0, eos_token_id=None
        )[0].tolist()
        assert one.ids == tuple(theirs[1:] if family == "t5" else theirs[len(prompt) :])


@pytest.mark.slow
@pytest.mark.parametrize("delta", DELTAS, ids=lambda delta: type(delta).__name__)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "t5"])
def test_with_a_delta_installed(family, delta):
    backbone = made(family)
    bare = generate(backbone, PROMPTS, most=MOST, ended=never)
    installed = delta.install(backbone, generator=torch.Generator().manual_seed(1))
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=drawn) * 0.3
    found = generate(backbone, PROMPTS, most=MOST, ended=never)
    assert_alike(backbone, found)
    assert found != bare
    installed.remove()
    assert generate(backbone, PROMPTS, most=MOST, ended=never) == bare


def test_behind_a_beginning_that_is_there_already():
    backbone = made("llama")
    whole = generate(backbone, [[9, 8, 7, *prompt] for prompt in PROMPTS], most=MOST, ended=never)
    with backbone.after([9, 8, 7]):
        found = generate(backbone, PROMPTS, most=MOST, ended=never)
    assert [one.ids for one in found] == [one.ids for one in whole]
    assert [one.log_probability for one in found] == pytest.approx([one.log_probability for one in whole], abs=1e-4)


def test_each_row_ends_by_itself():
    backbone = made("llama")

    def ended(ids):
        return len(ids) == 1 + ids[0] % 4

    found = generate(backbone, PROMPTS, most=MOST, ended=ended)
    assert_alike(backbone, found, ended)
    assert len({len(one.ids) for one in found}) > 1


def test_the_rows_of_another_entry():
    backbone = made("llama")
    with backbone.installing(2):
        installed = [delta.install(backbone, generator=torch.Generator().manual_seed(1)) for delta in (SoftPrompt(length=2), LoRA(rank=2))]
    with torch.no_grad():
        for weight in (weight for one in installed for weight in one.weights.values()):
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    bare, other = (generate(backbone, PROMPTS, most=MOST, ended=never, entry=entry) for entry in (0, 2))
    assert bare == generate(made("llama"), PROMPTS, most=MOST, ended=never) != other


def test_a_decoder_goes_on_from_what_it_is_given():
    backbone = made("t5")
    sentinel = backbone.tokenizer.get_vocab()["<extra_id_0>"]
    (found, _) = generate(backbone, PROMPTS[:2], most=2, ended=never, begin=(backbone.start, sentinel))
    with torch.no_grad():
        output = backbone.model(input_ids=torch.tensor(PROMPTS[:1]), decoder_input_ids=torch.tensor([[0, sentinel]])).logits[0, -1]
    assert found.ids[0] == int(output.argmax())


def test_a_model_that_writes_no_text_is_refused():
    with pytest.raises(BackboneError, match="expected an autoregressive PLM, or one with a decoder, got tiny bert, a masked model"):
        generate(made("bert"), PROMPTS, most=1, ended=never)
    encoder = Backbone(*tiny.model("t5", head=False), name="t5")
    with pytest.raises(BackboneError, match="a language-modelling head, got t5, an encoder alone"):
        generate(encoder, PROMPTS, most=1, ended=never)
