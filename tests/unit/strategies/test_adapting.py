"""Learning the unlabelled texts' language: what it starts from and minimises, once for all folds, through every kind of readout and delta,
and refused in one line where there is nothing to learn, to train or to predict with."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas import DELTAS
from fewtune.errors import BackboneError, DataError, SpecError, TaskError
from fewtune.readout import READOUTS
from fewtune.readout.calibration import Temperature
from fewtune.readout.similarity import Similarity
from fewtune.settings import with_pool
from fewtune.strategies import adapting
from fewtune.train.adapt import Auxiliary, TaskAdaptive
from fewtune.train.fit import FitOptions, Session

TRAIN = tuple(
    Example({"text": text}, label)
    for text, label in [("great fun and joy", "yes"), ("a dull mess", "no"), ("joy and fun", "yes"), ("lifeless and dull", "no")]
)
POOL = tuple(
    Example({"text": text})
    for text in ("the world of sports", "it was terrible", "what is the capital of the country?", "a joy from start to finish!", "business")
)
TASK = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}", words={"no": "terrible", "yes": "great"})
TAPT, BESIDE = TaskAdaptive(steps=4, batch_size=4), Auxiliary(weight=0.25, batch_size=4)


class Run:
    """One fit, with what it said and the losses of each of its parts."""

    def __init__(self, family="llama", *, task=TASK, train=TRAIN, pool=POOL, backbone=None, **given):
        self.said, self.losses = [], {}
        self.backbone = backbone or Backbone(*tiny.model(family), name=family)
        settings = job.Settings(
            **{
                "strategy": "supervised",
                "deltas": (ft.LoRA(rank=2),),
                "readout": ft.Cloze(),
                "fit": FitOptions(steps=3, batch_size=2, learning_rate=0.01),
                "seed": 3,
            }
            | given
        )
        session = Session(say=self.said.append, progress=self.note)
        self.model = job.tune(task, Split(train=train, unlabeled=pool), self.backbone, settings, session=session)

    def note(self, what, done, steps, loss):
        label = re.sub(r"^fit\.tapt-[0-9a-f]{8}$", "fit.tapt", what)  # what decides it
        self.losses.setdefault(label, []).append(loss)

    def language_loss(self, rows):
        """The mean over the rows' predictions, as the model is now."""
        whole = adapting.Language.of(self.model, rows, batch_size=len(rows), seed=1)
        with torch.no_grad():
            return whole.loss(whole.at(0)).item()


# Before


def bare(run):
    return adapting._bare(run.model, POOL)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_pools_language_is_learned_before_the_first_step_on_labels(family):
    options = FitOptions(steps=0)
    plain = Run(family, fit=options)
    learned = Run(family, fit=options, adapt=(TaskAdaptive(steps=60, learning_rate=0.02),))
    assert learned.language_loss(bare(learned)) < plain.language_loss(bare(plain)) - 0.3
    assert list(learned.losses) == ["fit.tapt"] and len(learned.losses["fit.tapt"]) == 60
    both = Run(family, adapt=(TAPT,))
    assert list(both.losses) == ["fit.tapt", "fit"] and both.losses["fit"] != Run(family).losses["fit"]


def test_texts_are_learned_as_they_are_with_both_of_a_pair():
    task = ft.Task.classification(
        ["no", "yes"], fields=("one", "two"), template="{one} and {two}: {slot}", words={"no": "terrible", "yes": "great"}
    )
    run = Run("bert", task=task, train=tuple(replace(row, fields={"one": row.fields["text"], "two": "fun"}) for row in TRAIN), pool=())
    (row,) = adapting._bare(run.model, [Example({"one": "great fun", "two": "a mess"})])
    assert run.backbone.tokenizer.convert_ids_to_tokens(row.ids) == ["[CLS]", "great", "fun", "[SEP]", "a", "mess", "[SEP]"]
    assert row.types == (0, 0, 0, 0, 1, 1, 1)


@pytest.mark.slow
def test_it_is_done_once_for_all_folds_and_labelled_rows_have_no_part_in_it():
    folded = Run(adapt=(TAPT,), calibration=Temperature())
    counts = Counter({what: len(losses) for what, losses in folded.losses.items()})
    assert counts == {"fit.tapt": 4, "fit": 3, **{f"fit.fold-{number}": 3 for number in range(1, 5)}}
    alone = Run(adapt=(TAPT,), train=TRAIN[:2])
    assert alone.losses["fit.tapt"] == folded.losses["fit.tapt"]


def test_every_fold_starts_from_what_was_learned_once(monkeypatch):
    found = []

    def learn(tuned, *rest):
        found.append([weight.detach().clone() for delta in tuned.deltas for weight in delta.weights.values()])

    monkeypatch.setattr("fewtune.strategies.supervised._learn", learn)
    Run(adapt=(TAPT,), calibration=Temperature())
    assert len(found) == 5 and any(bool(weight.any()) for weight in found[0])
    assert all(torch.equal(one, other) for fold in found[1:] for one, other in zip(found[0], fold, strict=True))


@pytest.mark.slow
def test_what_is_learned_of_other_texts_or_by_another_delta_is_not_taken_for_it():
    backbone, session = Backbone(*tiny.model("llama"), name="llama"), Session()
    for pool, rank in ((POOL, 2), (POOL, 3), (POOL[:2], 2), (POOL, 2)):
        settings = job.Settings(deltas=(ft.LoRA(rank=rank),), adapt=(TAPT,), fit=FitOptions(steps=1))
        job.tune(TASK, Split(train=TRAIN, unlabeled=pool), backbone, settings, session=session).remove()
    assert len(session.shared) == 3


# Beside


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_step_minimises_the_weighted_sum(family):
    """A fresh LoRA changes nothing, so the first losses are the untuned model's: alpha CE + (1 - alpha) LM, PET, section 3.2."""
    untuned = Run(family, fit=FitOptions(steps=0))
    language = adapting.beside(untuned.model, recipe(BESIDE), POOL).language
    with torch.no_grad():
        own = language.loss(language.at(0)).item()
    labels, both = Run(family), Run(family, adapt=(BESIDE,))
    assert both.losses["fit"][0] == pytest.approx(0.75 * labels.losses["fit"][0] + 0.25 * own, rel=1e-5)
    assert list(both.losses) == ["fit"] and len(both.losses["fit"]) == 3


@pytest.mark.slow
def test_texts_without_words_are_left_out():
    pool = (Example({"text": "  "}), *POOL)
    assert Run(adapt=(TAPT, BESIDE), pool=pool).losses == Run(adapt=(TAPT, BESIDE)).losses


def recipe(*adapt):
    return ft.Recipe(TASK, deltas=(ft.LoRA(rank=2),), adapt=adapt, seed=3)


def test_rows_stand_in_their_templates_and_the_slot_is_not_predicted():
    both = replace(TASK, templates=(*TASK.templates, "It was {slot}: {text}"))
    model = Run("bert", task=both).model
    language = adapting.beside(model, recipe(BESIDE), POOL).language
    tokens = [model.backbone.tokenizer.convert_ids_to_tokens(row.ids) for row in language.rows]
    assert [row[1] for row in tokens] == ["review"] * 3 + ["it"] * 2 and all("[MASK]" in row for row in tokens)
    mask = model.backbone.tokenizer.mask_token_id
    for step in range(20):
        assert mask not in language.at(step)[1].targets_N.tolist()


def test_a_text_that_comes_again_is_masked_anew():
    language = adapting.Language.of(Run("bert").model, bare(Run("bert"))[3:4], batch_size=1, seed=1)
    assert len({tuple(language.at(step)[1].places_N.tolist()) for step in range(10)}) > 1
    assert torch.equal(language.at(7)[0].ids_BT, language.at(7)[0].ids_BT)


def test_both_together():
    run = Run(adapt=(BESIDE, TAPT))
    assert list(run.losses) == ["fit.tapt", "fit"] and run.model.about["method"] == "supervised, cloze, auxiliary, tapt, lora"


# With every readout and delta


@pytest.mark.slow
@pytest.mark.parametrize("delta", list(DELTAS))
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_every_delta_learns_it(family, delta):
    small = {"prefix": "length=2", "soft-prompt": "length=2", "adapter": "size=3", "sharing": "groups=2"}
    wanted = f"{delta}:{small[delta]}" if delta in small else delta
    beside = (ft.LoRA(rank=2),) if delta in ("int8", "shallow") else ()  # these train nothing by themselves
    run = Run(family, deltas=(DELTAS.from_text(wanted), *beside), adapt=(TAPT, BESIDE))
    fresh = DELTAS.from_text(wanted).install(Backbone(*tiny.model(family), name=family), generator=torch.Generator())
    assert run.losses["fit.tapt"][-1] != run.losses["fit.tapt"][0] and len(fresh.weights) == len(run.model.deltas[0].weights)


@pytest.mark.parametrize("readout", list(READOUTS))
def test_beside_every_readout(readout):
    reversed_ = readout == "channel"
    task = replace(TASK, templates=("Sentiment: {slot} Review: {text}",)) if reversed_ else TASK
    if not READOUTS.member(readout).needs_slot:
        task = replace(TASK, templates=("{text}",))
    if readout == "generate":
        task = ft.Task.generation(template=TASK.templates[0])
    run = Run("llama", task=task, readout=READOUTS.from_text(readout), adapt=(TAPT, BESIDE))
    assert len(run.losses["fit"]) == 3 and len(run.losses["fit.tapt"]) == 4


@pytest.mark.slow
def test_the_ladder_judges_it_as_the_tuned_rung_and_only_there():
    run = Run(strategy="ladder", adapt=(TAPT,))
    assert [rung["name"] for rung in run.model.about["rungs"]][-1] == "tuned" and len(run.losses["fit.tapt"]) == 4
    assert ("tapt" in run.model.about["method"]) == (run.model.about["kept"] == "tuned")
    paired = Run(strategy="ladder", adapt=(TAPT,), readout=Similarity(), task=replace(TASK, templates=("{text}",)))
    assert [rung["name"] for rung in paired.model.about["rungs"]] == ["tuned", "frozen embeddings"]
    wanted = job.Settings(adapt=(TAPT,))
    many = Split(unlabeled=tuple(Example({"text": f"text {number}"}) for number in range(300)))
    assert wanted.way == "ladder" and with_pool(TASK, wanted, many, print) == wanted != with_pool(TASK, job.Settings(), many, print)


def test_of_several_plms_one_without_an_lm_head_learns_from_labels_alone():
    said, backbones = [], [Backbone(*tiny.model(family, head=family != "t5"), name=family) for family in ("llama", "t5")]
    recipes = [(recipe(TAPT, BESIDE), one) for one in backbones]
    split = Split(train=TRAIN, unlabeled=POOL)
    assert [own.adapt for own, _ in adapting.able(recipes, split, Session(say=said.append))] == [(TAPT, BESIDE), ()]
    assert said == ["t5 has no LM head and learns from labels alone."]
    with pytest.raises(BackboneError, match="got t5"):
        adapting.able(recipes[1:], split, Session())


@pytest.mark.slow
def test_the_members_of_pet_adapt_once_for_all_patterns_and_folds():
    rows = TRAIN * 2
    train = tuple(replace(row, fields={"text": f"{row.fields['text']} {number}"}) for number, row in enumerate(rows))
    run = Run(
        strategy="pet:patterns=2,shown=false,guard=false",
        task=replace(TASK, templates=()),
        train=train,
        deltas=None,
        readout=None,
        adapt=(TAPT,),
    )
    members = [what for what in run.losses if "member" in what]
    assert len(run.losses["fit.tapt"]) == 4 and len(members) == 2 * 5, run.said


# What is said


@pytest.mark.slow
def test_it_says_what_is_trained_and_for_how_long_before_it_starts():
    said = Run("llama", adapt=(TAPT, BESIDE)).said
    weights = sum(delta.trained_parameters for delta in Run("llama").model.deltas)
    assert said[0].startswith(f"Adapting {weights} weights to the language of 5 unlabelled texts, token by token: 4 steps of 4, about ")
    assert said[1] == "Each step also learns the language of 4 of 5 unlabelled texts, token by token, with weight 0.25."
    assert said[2].startswith(f"Tuning {weights} of ")
    assert "masked tokens" in Run("bert", adapt=(TAPT,)).said[0]
    folded = Run(adapt=(TAPT,), calibration=Temperature()).said
    assert sum(line.startswith("Adapting") for line in folded) == 1


# What is refused


def without_a_mask():
    model, tokenizer = tiny.model("bert")
    tokenizer.mask_token = None
    return Backbone(model, tokenizer, name="maskless")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pool": ()}, DataError, "--adapt: expected unlabelled rows, got none. Give texts with --unlabeled"),
        ({"pool": (Example({"text": ""}),)}, DataError, "--adapt: expected unlabelled rows with words in them, got none."),
        ({"deltas": ()}, TaskError, "--adapt: expected a delta that learns the texts' language, got none."),
        ({"deltas": (ft.Subset(part="none"),)}, TaskError, "--adapt: expected a delta that learns the texts' language, got none."),
        ({"strategy": "zeroshot", "deltas": None}, TaskError, "Name a --delta and no --strategy zeroshot"),
        ({"adapt": (TAPT, BESIDE, TAPT)}, SpecError, "--adapt: expected each adaptation once, got tapt twice."),
        (
            {
                "backbone": Backbone(*tiny.model("t5", head=False), name="t5"),
                "readout": ft.Head(),
                "task": replace(TASK, templates=("{text}",)),
            },
            BackboneError,
            "--adapt: expected a PLM with a language-modelling head, got t5, an encoder alone",
        ),
        ({"backbone": without_a_mask(), "readout": ft.Head(), "task": replace(TASK, templates=())}, BackboneError, "a mask token"),
    ],
)
@pytest.mark.parametrize("adapt", [TAPT, BESIDE], ids=["tapt", "auxiliary"])
def test_refused_in_one_line(adapt, given, error, message):
    with pytest.raises(error) as caught:
        Run(**{"adapt": (adapt,), **given})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TaskAdaptive, "steps", 0),
        (TaskAdaptive, "batch_size", 0),
        (TaskAdaptive, "learning_rate", 0.0),
        (Auxiliary, "weight", 0.0),
        (Auxiliary, "weight", 1.0),
        (Auxiliary, "batch_size", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(kind, field, value):
    with pytest.raises(SpecError, match=rf"\.{field}: expected a number"):
        kind(**{field: value})
