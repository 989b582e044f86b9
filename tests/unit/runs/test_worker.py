"""A job comes to the same whichever ran before, and leaves the backbone as it was."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import job as main
from fewtune.backbone import fingerprints, tiny
from fewtune.data.example import Example, Split
from fewtune.errors import BackboneError
from fewtune.evaluation import evaluate
from fewtune.runs.grid import Job
from fewtune.runs.local import run
from fewtune.runs.worker import Worker
from fewtune.train.fit import Session

TASK = ft.Task.classification(["negative", "positive"], words={"positive": "great", "negative": "terrible"})
TRAIN = (Example({"text": "great fun"}, "positive"), Example({"text": "a dull mess"}, "negative"))
TEST = (Example({"text": "fun"}, "positive"), Example({"text": "a mess"}, "negative"), Example({"text": "dull"}, "negative"))


@pytest.fixture(scope="module")
def plms(tmp_path_factory):
    return {name: str(tiny.save(name, tmp_path_factory.mktemp("plm") / name)) for name in ("llama", "bert")}


def job(plm, name="m", **settings):
    given = main.Settings(backbones=(plm,), fit=ft.FitOptions(steps=settings.pop("steps", 3), learning_rate=0.05), **settings)
    train = () if given.strategy == "zeroshot" else TRAIN
    return Job(name, "d", name, None, 42, TASK, Split(train=train, test=TEST), given)


@pytest.fixture
def jobs(plms):
    llama, bert = plms["llama"], plms["bert"]
    return [
        job(llama, "lora", deltas=(ft.LoRA(rank=2, dropout=0.1),)),
        job(llama, "zeroshot", strategy="zeroshot"),
        job(llama, "biases", deltas=(ft.Subset("all"),)),
        job(bert, "head", readout=ft.Head(), deltas=(ft.IA3(),)),
        job(llama, "fails", strategy="zeroshot", deltas=(ft.LoRA(),)),
        job(llama, "prefix", deltas=(ft.Prefix(length=2),)),
    ]


def run_all(jobs):
    kept = []
    run(jobs, kept.append, lambda: True, worker=Worker())
    return {result.key: replace(result, seconds=0.0) for result in kept}


@pytest.mark.slow
def test_results_do_not_depend_on_the_order(jobs):
    forth, back = run_all(jobs), run_all(jobs[::-1])
    alone = {one.key: replace(Worker().run(one), seconds=0.0) for one in jobs}
    assert forth == back == alone and list(forth) != list(back)
    assert "expected the PLM as it is" in forth["fails"].failed and not forth["fails"].metrics
    assert all(result.failed is None and len(result.right) == 3 for key, result in forth.items() if key != "fails")


def test_a_result_is_what_the_main_job_measures(jobs, plms):
    before = torch.get_num_threads()
    worker = Worker()
    result = worker.run(jobs[0])
    assert torch.get_num_threads() == before
    backbone = ft.load_backbone(plms["llama"])
    model = main.tune(TASK, Split(train=TRAIN), backbone, jobs[0].settings, session=Session())
    found = evaluate(model, TEST)
    assert result.metrics == found.measures.metrics and result.trained_parameters == model.trained_parameters > 0
    answers = [answer.label == example.label for answer, example in zip(model.predict(TEST), TEST, strict=True)]
    assert result.right == "".join(str(int(one)) for one in answers) and found.ratio.over_N.tolist() == answers
    assert fingerprints.model(worker.backbones([plms["llama"]])[0].model) == backbone.fingerprint


def test_one_backbone_is_kept_and_none_after_a_failure(jobs, plms):
    worker = Worker()
    (first,) = worker.backbones([plms["llama"]])
    worker.run(jobs[0])
    assert worker.backbones([plms["llama"]])[0] is first
    worker.run(jobs[4])
    assert worker.backbones([plms["llama"]])[0] is not first
    (second,) = worker.backbones([plms["bert"]])
    assert worker.backbones([plms["bert"]])[0] is second and len(worker._kept) == 1
    both = worker.backbones([plms["llama"], plms["bert"]])
    assert both[1] is second and worker.backbones([plms["bert"]]) == [second] and len(worker._kept) == 1


@pytest.mark.slow
def test_a_job_of_several_plms_is_the_main_job_with_them(plms):
    train = tuple(
        Example({"text": f"{text} {more}"}, label) for text, label in (("great", "positive"), ("dull", "negative")) for more in "ab"
    )
    given = main.Settings(backbones=(plms["llama"], plms["bert"]))
    result = Worker().run(Job("k", "d", "m", None, 42, TASK, Split(train=train, test=TEST), given))
    first, second = (ft.load_backbone(plms[name]) for name in ("llama", "bert"))
    torch.set_num_threads(1)
    model = main.tune(TASK, Split(train=train), first, given, session=Session(), beside=[second])
    assert result.failed is None and result.metrics == evaluate(model, TEST).measures.metrics
    assert result.trained_parameters == model.trained_parameters and len(model.about["rungs"]) > 4


def test_a_backbone_that_is_gone_is_no_result():
    with pytest.raises(BackboneError):
        Worker().run(job("./nowhere"))


def test_nothing_starts_once_told_to_stop(jobs):
    kept = []
    run(jobs, kept.append, lambda: not kept, worker=Worker())
    assert [result.key for result in kept] == ["lora"]
