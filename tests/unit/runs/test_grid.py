"""Each different job once, under a key that changes with whatever decides its figures, and with nothing else."""

import shutil

import pytest

from fewtune.backbone import tiny
from fewtune.backbone.load import load
from fewtune.data import sampling
from fewtune.errors import DataError
from fewtune.runs import grid
from fewtune.runs.jobfile import JobFile

JOB = """shots = [1, 2]
seeds = [13, 21]
[data.reviews]
train = "train.csv"
test = "test.csv"
words = {positive = "great", negative = "terrible"}
[methods.zeroshot]
strategy = "zeroshot"
backbone = "plm"
[methods.lora]
deltas = ["lora:rank=2"]
steps = 2
backbone = "plm"
"""
ROWS = [
    "great fun,positive",
    "a dull mess,negative",
    "good and great,positive",
    "terrible,negative",
    "fun,positive",
    "mess,negative",
]


@pytest.fixture(scope="module")
def plm(tmp_path_factory):
    return tiny.save("llama", tmp_path_factory.mktemp("plm") / "llama")


@pytest.fixture
def work(tmp_path, plm):
    shutil.copytree(plm, tmp_path / "plm")
    for name, rows in {"train": ROWS, "test": ROWS[:3]}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return tmp_path


def planned(work, text=JOB):
    (work / "job.toml").write_text(text)
    return grid.plan(JobFile.load(work / "job.toml"), lambda names: [load(name) for name in names], lambda line: None)


def keys(work, text=JOB):
    return {job.key for job in planned(work, text).jobs}


def test_cells_and_jobs(work):
    found = planned(work)
    assert [(cell.shots, cell.method) for cell in found.cells] == [(1, "zeroshot"), (1, "lora"), (2, "zeroshot"), (2, "lora")]
    assert all(len(cell.keys) == 2 for cell in found.cells)
    assert len(found.jobs) == 1 + 4 and {key for cell in found.cells for key in cell.keys} == {job.key for job in found.jobs}
    zeroshot = found.jobs[0]
    assert found.cells[0].keys == found.cells[2].keys == (zeroshot.key,) * 2
    assert zeroshot.split.train == () and zeroshot.settings.seed == 42 and len(zeroshot.split.test) == 3


def test_draws_are_those_of_sampling(work):
    found = planned(work)
    everything = planned(work, JOB.replace("shots = [1, 2]\n", "")).jobs[1].split.train
    assert len(everything) == len(ROWS)
    for job in found.jobs[1:]:
        assert job.split.train == sampling.shots(everything, job.shots, seed=job.seed) and job.settings.seed == job.seed


@pytest.mark.slow
def test_jobs_that_are_the_same_keep_their_keys(work):
    before = keys(work)
    more = JOB.replace("[13, 21]", "[21, 42, 13]") + '[methods.again]\ndeltas = ["lora:rank=2"]\nsteps = 2\nbackbone = "plm"\n'
    assert before < keys(work, more) and len(keys(work, more)) == 1 + 6
    renamed = JOB.replace("lora]", "tuned]").replace("data.reviews", "data.films")
    assert keys(work, renamed) == before
    (work / "plm").rename(work / "other")
    assert keys(work, JOB.replace('"plm"', '"other"')) == before


@pytest.mark.parametrize("change", ["steps", "rank", "words", "train", "test", "weights", "code"])
def test_what_decides_a_result_is_in_its_key(work, monkeypatch, change):
    before, text = keys(work), JOB
    common = 1  # zero-shot, which knows neither steps nor deltas nor labelled rows
    if change in ("steps", "rank", "words"):
        old, new = {"steps": ("steps = 2", "steps = 3"), "rank": ("rank=2", "rank=3"), "words": ("great", "good")}[change]
        text, common = JOB.replace(old, new), 0 if change == "words" else 1
    elif change in ("train", "test"):
        path = work / f"{change}.csv"
        path.write_text(path.read_text().replace("fun", "joy"))
        common = 0 if change == "test" else None  # draws without the changed rows stay as they are
    elif change == "weights":
        shutil.rmtree(work / "plm")
        tiny.save("gpt2", work / "plm")
        common = 0
    else:
        monkeypatch.setattr(grid, "code_version", lambda: "another")
        common = 0
    after = keys(work, text)
    assert after != before
    if common is not None:
        assert len(after & before) == common


def test_too_few_rows_are_found_before_anything_runs(work):
    with pytest.raises(DataError, match="4 examples of label"):
        planned(work, JOB.replace("[1, 2]", "[4]"))


def test_a_task_file_and_unlabelled_rows(work):
    (work / "task.toml").write_text('labels = ["negative", "positive"]\nfields = ["review"]\ntemplate = "{review} It was {slot}"\n')
    (work / "pool.csv").write_text("text\nfun\njoy\n")
    text = JOB.replace('words = {positive = "great", negative = "terrible"}', 'task = "task.toml"\ntext = "text"\nunlabeled = "pool.csv"')
    job = planned(work, text).jobs[0]
    assert job.task.templates == ("{review} It was {slot}",)
    assert [dict(one.fields) for one in job.split.unlabeled] == [{"review": "fun"}, {"review": "joy"}]


def test_in_context_learning_is_given_the_draws_rows_and_a_seed(work):
    shown = JOB.replace('strategy = "zeroshot"\n', 'strategy = "zeroshot"\ndemonstrations = "similar=1"\n')
    jobs = [job for job in planned(work, shown).jobs if job.method == "zeroshot"]
    assert [(job.shots, job.seed, len(job.split.train)) for job in jobs] == [(1, 13, 2), (1, 21, 2), (2, 13, 4), (2, 21, 4)]
    assert [job.settings.seed for job in jobs] == [13, 21, 13, 21]


BOTH = JOB.replace(JOB[JOB.index("[methods.lora]") :], '[methods.both]\nbackbone = ["plm", "other"]\n')


@pytest.mark.slow
def test_a_method_of_several_plms_has_the_keys_of_all_of_them(work):
    tiny.save("bert", work / "other")
    before = planned(work, BOTH)
    both = [job for job in before.jobs if job.method == "both"]
    assert len(both) == 4 and both[0].settings.judged == (str(work / "plm"), str(work / "other")) and both[0].settings.way == "ladder"
    again = {job.key for job in planned(work, BOTH.replace('["plm", "other"]', '["other", "plm"]')).jobs if job.method == "both"}
    assert not again & {job.key for job in both}, "the first one named comes first"
    (work / "other").rename(work / "third")
    assert keys(work, BOTH.replace("other", "third")) == {job.key for job in before.jobs}
    shutil.rmtree(work / "third")
    tiny.save("roberta", work / "third")
    changed = keys(work, BOTH.replace("other", "third"))
    assert changed & {job.key for job in before.jobs} == {before.jobs[0].key}, "what the second PLM is decides as well"


def test_other_kinds_are_drawn_in_their_own_way_and_compared_by_their_own_metric(work):
    for name, labels in {
        "scores": ["5", "1", "4", "2", "4.5", "1.5"],
        "several": ["joy", "gloom|joy", "", "gloom", "joy", "gloom"],
    }.items():
        lines = [f"{row.split(',')[0]},{label}" for row, label in zip(ROWS, labels, strict=True)]
        (work / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    head = JOB[: JOB.index("[data.reviews]")]
    data = '[data.scores]\ntrain = "scores.csv"\ntest = "scores.csv"\nkind = "regression:low=0,high=5"\n'
    data += '[data.several]\ntrain = "several.csv"\ntest = "several.csv"\nkind = "multilabel"\n'
    found = planned(work, head + data + '[methods.head]\nreadout = "head"\nsteps = 1\nbackbone = "plm"\n')
    assert {(cell.data, cell.metric) for cell in found.cells} == {("scores", "mae"), ("several", "micro_f1")}
    for job in found.jobs:
        labels = [example.label for example in job.split.train]
        if job.data == "scores":
            assert sum(float(label) > 3 for label in labels) == sum(float(label) < 3 for label in labels) == job.shots
        else:
            assert all(sum(name in label for label in labels) >= job.shots for name in ("joy", "gloom")) and "" not in labels


def test_a_method_that_leaves_everything_open_learns_from_a_pool_as_fit_does(work):
    (work / "pool.csv").write_text("text\n" + "".join(f"fun {number}\n" for number in range(200)))
    text = JOB.replace('test = "test.csv"\n', 'test = "test.csv"\nunlabeled = "pool.csv"\n') + '[methods.open]\nbackbone = "plm"\n'
    ways = {job.method: job.settings.way for job in planned(work, text).jobs}
    assert ways == {"zeroshot": "zeroshot", "lora": "supervised", "open": "pet"}
    without = JOB + '[methods.open]\nbackbone = "plm"\n'
    assert {job.settings.way for job in planned(work, without).jobs if job.method == "open"} == {"ladder"}


def test_a_teacher_s_file_is_learned_from_where_a_strategy_can_and_decides_its_key(work):
    more = "".join(f'[methods.{name}]\nstrategy = "{way}"\nbackbone = "plm"\n' for name, way in (("pet", "pet"), ("plain", "supervised")))
    taught = JOB.replace('test = "test.csv"', 'test = "test.csv"\nteacher = "teacher.csv"') + more
    (work / "teacher.csv").write_text("text,label\nso much fun,positive\n")
    before = planned(work, taught).jobs
    assert {job.method: len(job.split.taught) for job in before} == {"zeroshot": 0, "lora": 1, "pet": 1, "plain": 0}
    assert {job.settings.way for job in before if job.method == "lora"} == {"pet"}, "as fit would"
    (work / "teacher.csv").write_text("text,label\nso much fun,negative\n")
    changed = {job.method for job, other in zip(before, planned(work, taught).jobs, strict=True) if job.key != other.key}
    assert changed == {"pet", "lora"}
