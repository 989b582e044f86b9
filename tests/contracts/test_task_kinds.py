"""Every kind of task in the table: what it asks of labels, that it learns, what answers are, and that the artifact, the card, the
writer and the evaluation handle it."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fewtune import artifact, card, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.readers import read
from fewtune.data.sampling import folds, shots
from fewtune.data.writers import open_writer
from fewtune.deltas.lora import LoRA
from fewtune.errors import DataError, InputError, TaskError
from fewtune.evaluation import evaluate
from fewtune.readout import READOUTS
from fewtune.readout.calibration import Temperature
from fewtune.readout.channel import Channel
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.similarity import Similarity
from fewtune.settings import PETS
from fewtune.strategies import STRATEGIES
from fewtune.tasks import KINDS, kind_of
from fewtune.tasks.task import Task, candidates_of
from fewtune.train.fit import FitOptions, Session
from fewtune.train.losses import cross_entropy

TEXTS = ("great fun and joy", "a dull mess", "great great joy", "dull lifeless mess", "joy and fun", "a mess", "fun", "dull")


@dataclass(frozen=True)
class Case:
    """A task of the kind, a label for each text, a label that does not fit, and the readouts that answer it."""

    task: Task
    labels: tuple[str, ...]
    wrong: str
    readouts: tuple[str, ...]
    strategies: tuple[str, ...]
    candidates: tuple[str, ...] | None = None
    drawn: int = 4

    @property
    def rows(self):
        return tuple(Example({"text": text}, label, candidates=self.candidates) for text, label in zip(TEXTS, self.labels, strict=True))

    @property
    def asked(self):
        """What is predicted: texts, and what they are answered from where that is each row's own."""
        return [{"text": text, "choices": list(self.candidates)} for text in TEXTS] if self.candidates else list(TEXTS)

    def written(self, text, label):
        """A row as a source has it."""
        return {"text": text, "label": label, **({"choices": list(self.candidates)} if self.candidates else {})}

    @property
    def places(self):
        """How many candidates a row has."""
        return len(self.task.labels or self.candidates)


WORDS = {"no": "terrible", "yes": "great"}
CASES = {
    "classification": Case(
        Task.classification(["no", "yes"], words=WORDS),
        ("yes", "no", "yes", "no", "yes", "no", "yes", "no"),
        "perhaps",
        ("cloze", "channel", "head", "likelihood", "similarity"),
        ("zeroshot", "supervised", "ladder", *PETS),
    ),
    "regression": Case(
        Task.regression(low=0, high=4, poles=("no", "yes"), words=WORDS),
        ("3", "1", "4", "0", "3.5", "1", "2.5", "1.5"),
        "many",
        ("cloze", "channel", "head", "likelihood"),
        ("zeroshot", "supervised", "ladder"),
    ),
    "multilabel": Case(
        Task.multilabel(["dull", "fun"], threshold=0.5),
        ("fun", "dull", "fun", "dull", "fun", "dull", "fun", "dull"),
        "perhaps",
        ("head", "similarity"),
        ("supervised", "ladder"),
    ),
    "choice": Case(
        Task.choice(label="text", fields=["text"]),
        ("great", "dull mess", "great", "dull mess", "great", "dull mess", "great", "dull mess"),
        "perhaps",
        ("likelihood",),
        ("zeroshot", "supervised", "ladder"),
        candidates=("dull mess", "great"),
        drawn=2,
    ),
}
READERS = {"cloze": Cloze(), "channel": Channel(), "head": Head(dropout=0.0), "likelihood": Likelihood(), "similarity": Similarity()}
EACH = pytest.mark.parametrize("name", list(CASES))
ANSWERED = [(name, readout) for name, case in CASES.items() for readout in case.readouts]


def tuned(case, readout, *, family="bert", strategy="supervised", steps=60, **more):
    backbone = Backbone(*tiny.model(family), name=family)
    options = FitOptions(steps=steps, learning_rate=None if strategy == "zeroshot" else 0.02)
    deltas = () if strategy == "zeroshot" else (LoRA(rank=4),)
    settings = job.Settings(strategy=strategy, readout=READERS[readout], deltas=deltas, fit=options, seed=3, **more)
    pool = tuple(Example({"text": f"{text} and joy"}) for text in TEXTS) if strategy in PETS else ()
    split = Split(train=() if strategy == "zeroshot" else case.rows, unlabeled=pool)
    return job.tune(case.task, split, backbone, settings, session=Session()), backbone


def test_every_kind_is_seen():
    assert list(KINDS) == [*CASES, "generation"]  # which has test_generation.py
    assert list(CASES) == ["classification", "regression", "multilabel", "choice"]
    assert {readout for case in CASES.values() for readout in case.readouts} == set(READERS) == set(READOUTS) - {"generate"}


@EACH
def test_it_is_written_as_a_flag_and_as_a_table_and_a_task_file_keeps_it(name, tmp_path):
    task = CASES[name].task
    assert KINDS.from_text(KINDS.to_text(kind_of(task))) == kind_of(task)
    assert kind_of(Task.from_dict({**task.to_dict(), "kind": KINDS.to_dict(kind_of(task))})) == kind_of(task)
    (tmp_path / "task.toml").write_text(task.to_toml())
    assert Task.load(tmp_path / "task.toml") == task == Task.from_dict(task.to_dict())


@EACH
def test_it_says_who_offers_the_candidates(name):
    case = CASES[name]
    offered = kind_of(case.task).offered
    assert bool(case.task.labels) == (offered == "task")
    assert all(candidates_of(case.task, row) == (case.task.labels or row.candidates or ()) for row in case.rows)
    with pytest.raises(TaskError, match="labels"):
        replace(case.task, labels=() if offered == "task" else ("no", "yes"), words={})


@EACH
def test_labelled_rows_read_and_a_wrong_label_is_named(name):
    case = CASES[name]
    listed = [case.written(*row) for row in zip(TEXTS, case.labels, strict=True)]
    options = {"text": ["text"], "labeled": True, "known": case.task.labels or None, "written": kind_of(case.task).written}
    examples = read(listed, **options).examples
    kind_of(case.task).check(case.task, examples, "here")
    assert [example.label for example in examples] == list(case.labels)
    with pytest.raises(DataError, match=case.wrong):
        read([*listed, case.written("fun", case.wrong)], **options)
    with pytest.raises(DataError, match=case.wrong):
        kind_of(case.task).check(case.task, [Example({"text": "fun"}, case.wrong, candidates=case.candidates)], "here")
    assert read([*listed, case.written("fun", case.wrong)], skip_bad_rows=True, **options).skipped == 1


@EACH
def test_what_is_settled_stays_so(name):
    case = CASES[name]
    task, _ = kind_of(case.task).settled(case.task, case.rows)
    assert kind_of(task).settled(task, case.rows) == (task, None)


@EACH
def test_targets_are_a_form_that_the_loss_knows_and_certain_answers_give_them_back(name):
    case = CASES[name]
    kind, targets = kind_of(case.task), torch.tensor(kind_of(case.task).targets(case.task, case.rows))
    assert len(targets) == len(case.rows)
    scores = torch.zeros(len(targets), case.places, requires_grad=True)
    cross_entropy(scores, targets).backward()
    assert bool(scores.grad.isfinite().all()) and bool(scores.grad.any())
    sure = torch.eye(case.places)[targets] if targets.ndim == 1 else targets
    answers = kind.answers(case.task, case.rows, sure.tolist())
    again = kind.targets(case.task, [Example({}, answer, candidates=case.candidates) for answer in answers])
    torch.testing.assert_close(torch.tensor(again), targets, atol=1e-4, rtol=0)
    assert all(found is None or 0 <= found <= 1 for found in (kind.confidence(case.task, row) for row in sure.tolist()))


@EACH
def test_measures_are_those_it_names_the_main_one_first(name):
    case = CASES[name]
    kind, rng = kind_of(case.task), np.random.default_rng(0)
    probabilities = rng.dirichlet([1] * case.places, len(case.rows))  # as good as any where they need not add up to 1
    found = kind.measure(case.task, case.rows, probabilities)
    assert tuple(found.metrics) == kind.metrics and found.rows == len(case.rows) and found.labels == case.task.labels
    assert all(one.low <= one.value <= one.high for one in found.metrics.values())


@EACH
def test_what_rows_add_is_what_is_measured_of_any_of_them(name):
    case = CASES[name]
    kind, probabilities = kind_of(case.task), np.random.default_rng(0).dirichlet([1] * case.places, len(case.rows))
    ratio = kind.ratio(case.task, case.rows, probabilities)
    assert ratio.metric == kind.estimated in kind.metrics and len(ratio.over_N) == len(ratio.under_N) == len(case.rows)
    for part in (slice(None), slice(0, 5), slice(2, 4), slice(6, 7)):
        found = kind.measure(case.task, case.rows[part], probabilities[part]).metrics[kind.estimated]
        assert ratio.of(np.arange(len(case.rows))[part]).value == pytest.approx(found.value) and found.value <= ratio.most


@EACH
def test_shots_are_drawn_of_everything_that_it_answers(name):
    case = CASES[name]
    drawn = shots(case.rows, 2, seed=1, groups=kind_of(case.task).drawn(case.task, case.rows))
    assert len(drawn) == case.drawn and (case.candidates or len(set(kind_of(case.task).groups(case.task, drawn, 2))) == 2)
    assert kind_of(case.task).lacking(case.task, case.rows, 4) is None and kind_of(case.task).lacking(case.task, case.rows[:3], 4)


@EACH
def test_folds_balance_its_answers(name):
    case = CASES[name]
    kind = kind_of(case.task)
    groups = kind.groups(case.task, case.rows, 2)
    assert len(groups) == len(case.rows) and len(set(groups)) == 2
    for _, held in folds(case.rows, 4, seed=1, groups=groups):
        assert len({groups[index] for index in held}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "readout", "family"),
    [(*answered, family) for answered in ANSWERED for family in ("bert", "llama") if answered[1] != "channel" or family == "llama"],
)
def test_what_is_tuned_learns_is_kept_by_the_artifact_and_measured(name, readout, family, tmp_path):
    case = CASES[name]
    model, backbone = tuned(case, readout, family=family)
    answers = model.predict(case.asked)
    found = evaluate(model, case.rows)
    assert found.measures.metrics[kind_of(case.task).metrics[0]].value > 0.9
    model.save(tmp_path / "model")
    model.remove()
    loaded = artifact.load(tmp_path / "model", backbone=backbone)
    assert loaded.predict(case.asked) == answers and loaded.task == model.task
    assert kind_of(case.task).described(model.task) in (tmp_path / "model/README.md").read_text()
    assert evaluate(loaded, case.rows).to_dict() == found.to_dict()


def marked(name, strategy):
    """PET tunes several members and a student in each fold."""
    return pytest.param(name, strategy, marks=pytest.mark.slow if strategy in PETS else ())


@pytest.mark.parametrize(("name", "strategy"), [marked(name, strategy) for name, case in CASES.items() for strategy in case.strategies])
def test_every_strategy_that_claims_it_runs(name, strategy):
    case = CASES[name]
    model, _ = tuned(case, case.readouts[0], strategy=strategy, steps=2)
    assert len(model.predict(case.asked)) == len(TEXTS)


@pytest.mark.parametrize(
    ("name", "strategy"), [(name, strategy) for name, case in CASES.items() for strategy in STRATEGIES if strategy not in case.strategies]
)
def test_every_other_strategy_refuses_it(name, strategy):
    with pytest.raises(InputError, match=f"strategy {strategy}:"):
        tuned(CASES[name], CASES[name].readouts[0], strategy=strategy)


@pytest.mark.parametrize(
    ("name", "readout"), [(name, readout) for name, case in CASES.items() for readout in READERS if readout not in case.readouts]
)
def test_every_other_readout_refuses_it(name, readout):
    with pytest.raises(InputError, match="--readout"):
        tuned(CASES[name], readout)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["bert", "t5"])
@EACH
def test_with_nothing_chosen_it_is_tuned_in_a_way_that_suits_it(name, backbone):
    case, said = CASES[name], []
    loaded = Backbone(*tiny.model(backbone), name=backbone)
    settings = job.Settings(fit=FitOptions(batch_size=4))
    model = job.tune(case.task, Split(train=case.rows[:4]), loaded, settings, session=Session(say=said.append))
    assert READOUTS.name_of(model.readout) in case.readouts
    found = model.about["estimate"]
    assert found["metric"] == kind_of(case.task).estimated and found["low"] <= found["value"] <= found["high"]
    assert all(set(rung) == {"name", found["metric"], "loss"} for rung in model.about["rungs"])
    assert not kind_of(model.task).undecided and any(f"Kept: {model.about['kept']}. Estimate: " in line for line in said)


@pytest.mark.slow
@EACH
def test_a_temperature_is_fitted_on_rows_not_seen(name):
    case = CASES[name]
    model, _ = tuned(case, case.readouts[0], steps=3, calibration=Temperature())
    assert model.calibrator.temperature > 0


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@EACH
def test_answers_are_written(name, form):
    case = CASES[name]
    model, _ = tuned(case, case.readouts[-1], steps=2)
    stream = io.StringIO()
    with open_writer(stream, columns=("text",), form=form) as write:
        for text, answer in zip(TEXTS, model.predict(case.asked), strict=True):
            write({"text": text}, answer)
    assert len(stream.getvalue().splitlines()) == len(TEXTS) + (form == "csv")


@EACH
def test_the_card_says_what_it_answers(name):
    case = CASES[name]
    backbone = {"name": "x", "fingerprint": "0" * 64, "tokenizer_fingerprint": "1" * 64}
    counted = {"trained_parameters": 1, "backbone_parameters": 10, "max_length": 8, "templates": []}
    text = card.write({"task": case.task.to_dict(), "backbone": backbone, "about": {}, **counted}, sizes={})
    assert kind_of(case.task).described(case.task) in text
    assert 'model.predict([{"text": "…", "choices": ["…", "…"]}])' in text if case.candidates else 'model.predict(["…"])' in text
