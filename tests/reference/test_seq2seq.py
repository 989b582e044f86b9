"""What a decoder writes, scored against transformers' own forward of the whole model: one prompt, one word and one token at a time."""

from dataclasses import replace

import pytest
import torch

from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import TaskError
from fewtune.model import TunedModel
from fewtune.readout.calibration import CONTENT_FREE
from fewtune.readout.cloze import Cloze
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.pmi import PMI
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Session
from fewtune.train.losses import cross_entropy

TEXTS = ("a dull, lifeless mess.", "great fun", "was it fun? no, it was a terrible mess from start to finish!")
WORDS = {"bad": ("dull",), "worse": ("dull mess", "very dull mess"), "odd": ("what a mess",), "fine": ("great", "great fun")}
SHORT = {"no": ("sports",), "yes": ("great", "science")}
AT_END, INSIDE = "Review: {text}\nIt was {slot}", "Review: {text}\nIt was {slot}, they say."


def assembled(readout, *, template=AT_END, words=WORDS, seed=0):
    backbone = Backbone(*tiny.model("t5", seed=seed), name="t5")
    return TunedModel.assemble(backbone, Task.classification(list(words), template=template, words=words), readout)


def examples(texts=TEXTS):
    return [Example({"text": text}) for text in texts]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def read(tokenizer, text, template):
    """(what the encoder is given, what the decoder begins with): both made by hand."""
    if template == AT_END:
        return [*ids_of(tokenizer, f"Review: {text}\nIt was"), tokenizer.eos_token_id], [0]
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    before, behind = ids_of(tokenizer, f"Review: {text}\nIt was"), ids_of(tokenizer, ", they say.")
    return [*before, sentinel, *behind, tokenizer.eos_token_id], [0, sentinel]


def log_probability(model, tokenizer, text, word, template):
    """(the sum over the word's tokens, how many there are)."""
    source, target = read(tokenizer, text, template)
    total, tokens = 0.0, ids_of(tokenizer, word)
    for token in tokens:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
        total += logits_TV[-1].log_softmax(-1)[token].item()
        target = [*target, token]
    return total, len(tokens)


def by_hand(model, words, template, per, texts=TEXTS):
    tokenizer = model.backbone.tokenizer

    def score(text, own):
        each = []
        for word in own:
            total, tokens = log_probability(model.backbone.model, tokenizer, text, word, template)
            each.append(total / {"word": 1, "token": tokens, "byte": len(word)}[per])
        return sum(each) / len(each)

    return torch.tensor([[score(text, own) for own in words.values()] for text in texts])


def close(mine, wanted):
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("template", [AT_END, INSIDE])
@pytest.mark.parametrize("per", ["word", "token", "byte"])
def test_likelihood_equals_a_loop_over_words_and_tokens(per, template):
    model = assembled(Likelihood(per=per), template=template)
    assert {len(word) for own in model.asked.words[0].ids for word in own} > {1}
    close(model.raw_scores(examples()), by_hand(model, WORDS, template, per))


@pytest.mark.parametrize("template", [AT_END, INSIDE])
def test_cloze_reads_the_first_token_that_the_decoder_writes(template):
    model = assembled(Cloze(), template=template, words=SHORT)
    close(model.raw_scores(examples()).log_softmax(-1), by_hand(model, SHORT, template, "word").log_softmax(-1))


def test_a_slot_with_text_behind_it_needs_the_sentinel():
    model = assembled(Likelihood(), template=INSIDE)
    assert model.asking.rows(examples(), 0)[0].slot == 1 and assembled(Likelihood()).asking.rows(examples(), 0)[0].slot == 0
    known = model.backbone.tokenizer.get_vocab()
    model.backbone.tokenizer.get_vocab = lambda: {piece: token for piece, token in known.items() if piece != "<extra_id_0>"}
    with pytest.raises(TaskError, match="the sentinel <extra_id_0>, got one without.*Put {slot} last"):
        model.asking.rows(examples(), 0)


def test_pmi_takes_off_what_the_words_get_in_the_template_alone():
    model = assembled(Likelihood())
    nothing_NC = model.raw_scores([Example({"text": ""})])
    close(nothing_NC, by_hand(model, WORDS, AT_END, "word", [""]))
    mended = model.calibrated(PMI().fit(nothing_NC))
    wanted_NC = (by_hand(model, WORDS, AT_END, "word") - nothing_NC).double().softmax(-1)
    torch.testing.assert_close(mended.probabilities(examples()), wanted_NC, atol=1e-5, rtol=1e-5)


def test_the_encoder_runs_once_for_all_words_of_a_prompt():
    model, seen = assembled(Likelihood()), []
    hook = model.backbone.model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output[0].shape[0]))
    model.raw_scores(examples(), batch_size=64)
    hook.remove()
    assert seen == [len(TEXTS)] and len(model.asking.spellings[0].fills) > 2


def test_rows_score_alike_alone_and_together():
    model = assembled(Likelihood(per="token"))
    alone_NC = torch.cat([model.raw_scores([example]) for example in examples()])
    close(model.raw_scores(examples(), batch_size=64), alone_NC)


@pytest.mark.parametrize(
    "delta", [LoRA(rank=2), SoftPrompt(length=3), Prefix(length=2), Subset(part="all")], ids=lambda delta: type(delta).__name__
)
def test_what_a_delta_learns_reaches_the_words_and_is_saved(delta, tmp_path):
    task = Task.classification(list(WORDS), template=AT_END, words=WORDS)
    backbone = Backbone(*tiny.model("t5"), name=str(tiny.save("t5", tmp_path / "plm")))
    rows = tuple(Example({"text": f"{text} {word}"}, label) for label, (word, *_) in WORDS.items() for text in TEXTS[:2])
    bare_NC = TunedModel.assemble(backbone, task, Likelihood()).raw_scores(rows)
    rate = 0.003 if isinstance(delta, Subset) else 0.02
    settings = job.Settings(strategy="supervised", readout=Likelihood(), deltas=(delta,), fit=FitOptions(steps=20, learning_rate=rate))
    model = job.tune(task, Split(train=rows), backbone, settings, session=Session())
    tuned_NC, targets_N = model.raw_scores(rows), torch.arange(4).repeat_interleave(2)
    start_C = torch.tensor(model.calibrator.bias_C)
    assert cross_entropy(tuned_NC - start_C, targets_N) < cross_entropy(bare_NC - start_C, targets_N) - 0.1
    loaded = artifact.load(model.save(tmp_path / "model"))
    close(loaded.raw_scores(rows), tuned_NC)
    model.remove()
    assert torch.equal(TunedModel.assemble(backbone, task, Likelihood()).raw_scores(rows), bare_NC)


def test_a_soft_prompt_is_seen_by_the_decoder_too():
    model = assembled(Likelihood())
    vectors_PD = torch.nn.Parameter(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    undo = model.backbone.put_in_front(vectors_PD)
    mine_NC = model.raw_scores(examples())
    undo()
    plain, tokenizer = model.backbone.model, model.backbone.tokenizer
    for text, mine_C in zip(TEXTS, mine_NC, strict=True):
        source, target = read(tokenizer, text, AT_END)
        embedded = torch.cat([vectors_PD, plain.get_input_embeddings()(torch.tensor(source))])[None]
        word = ids_of(tokenizer, "what a mess")
        given = torch.tensor([[*target, *word[:-1]]])
        with torch.no_grad():
            log_TV = plain(inputs_embeds=embedded, decoder_input_ids=given).logits[0].log_softmax(-1)
        close(mine_C[2], log_TV[torch.arange(len(word)), torch.tensor(word)].sum())


def test_rows_of_several_entries_share_a_pass():
    model = assembled(Likelihood())
    backbone = model.backbone
    for entry, seed in ((1, 1), (2, 2)):
        with backbone.installing(entry):
            installed = LoRA(rank=2, sites=("query", "ffn_out")).install(backbone, generator=torch.Generator().manual_seed(seed))
            for weight in installed.weights.values():
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(seed))
    batch = model.asking.collate(model.asking.rows(examples(), 0), 0)
    given = (batch.ids_BT, batch.mask_BT, batch.types_BT)

    def hidden(route_B, rows=slice(None)):
        tensors = [None if tensor is None else tensor[rows] for tensor in (*given, batch.written_BFJ)]
        with torch.no_grad():
            return backbone.forward(*tensors[:3], route_B=route_B, written_BFJ=tensors[3]).hidden_BTD

    together = hidden(torch.tensor([2, -1, 1]))
    for row, entry in enumerate((2, -1, 1)):
        close(together[row : row + 1], hidden(torch.tensor([entry]), slice(row, row + 1)))
    assert not torch.allclose(together[0], hidden(torch.tensor([1, 1, 1]))[0], atol=1e-3)


def test_zero_shot_is_calibrated_as_in_every_family():
    task = Task.classification(list(SHORT), template=INSIDE, words=SHORT)
    backbone = Backbone(*tiny.model("t5"), name="t5")
    model = job.zeroshot(task, backbone=backbone)
    assert model.readout == Cloze()
    plain = replace(model, asked=model.asked)
    nothing_NC = by_hand(plain, SHORT, INSIDE, "word", list(CONTENT_FREE)).double().softmax(-1).mean(0)
    wanted_NC = (by_hand(plain, SHORT, INSIDE, "word").double().log_softmax(-1) - nothing_NC.log()).softmax(-1)
    torch.testing.assert_close(model.probabilities(examples()), wanted_NC, atol=1e-5, rtol=1e-5)
