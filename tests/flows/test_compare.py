"""`fewtune compare` as a user types it, on tiny model folders: one table, whatever stopped it in between."""

import json
import signal
import time
from pathlib import Path

import pytest
from apart import Apart, wait_until

from fewtune.backbone import tiny
from fewtune.runs import worker
from fewtune.runs.store import Store

JOB = """shots = [1, 2]
seeds = [13, 21]
[data.reviews]
train = "train.csv"
test = "test.csv"
text = "review"
words = {positive = "great", negative = "terrible"}
[methods.zeroshot]
strategy = "zeroshot"
backbone = "llama"
[methods.lora]
deltas = ["lora:rank=2,dropout=0.1"]
steps = 4
learning_rate = 0.05
backbone = "llama"
[methods.refused]
strategy = "zeroshot"
deltas = ["lora"]
backbone = "llama"
[methods.head]
readout = "head"
steps = 4
backbone = "bert"
"""
ROWS = ["great fun,positive", "a dull mess,negative", "good and great,positive", "terrible lifeless,negative"]
TEST = ["fun,positive", "a mess,negative", "dull,negative", "great,positive", "joy,positive"]
JOBS = 1 + 4 + 1 + 4  # without training there is one for all draws, also where it fails


@pytest.fixture(scope="module")
def plms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plms")
    return [tiny.save(name, folder / name) for name in ("llama", "bert")]


@pytest.fixture
def work(tmp_path, monkeypatch, plms):
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path, plms)


def lay(folder, plms):
    folder.mkdir(exist_ok=True)
    for plm in plms:
        (folder / plm.name).symlink_to(plm)
    for name, rows in {"train": ROWS, "test": TEST}.items():
        (folder / f"{name}.csv").write_text("\n".join(["review,sentiment", *rows]) + "\n")
    (folder / "job.toml").write_text(JOB)
    return folder


def keys(path):
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_one_table(work, fewtune):
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0, err
    assert f"{JOBS} jobs: 0 finished already, {JOBS} to run; results are kept in job.jsonl." in err
    found = json.loads(out)
    assert found["baseline"] == "zeroshot" and found["jobs"] == JOBS and found["left"] == 0 and found["results"] == "job.jsonl"
    assert [(row["shots"], row["method"]) for row in found["rows"]][:5] == [
        *((1, "zeroshot"), (1, "lora"), (1, "refused"), (1, "head")),
        (2, "zeroshot"),
    ]
    zeroshot, lora, refused, head = found["rows"][:4]
    assert zeroshot["runs"] == 1 and zeroshot["metrics"]["accuracy"]["deviation"] is None and zeroshot["contrast"] is None
    assert zeroshot == found["rows"][4] | {"shots": 1}
    assert lora["runs"] == lora["done"] == head["done"] == 2 and lora["metrics"]["accuracy"]["deviation"] >= 0
    assert set(lora["metrics"]) == {"accuracy", "macro_f1", "mcc", "ece"} and 0 <= lora["contrast"]["p"] <= 1
    assert refused["done"] == 0 and "expected the PLM as it is, got deltas" in refused["failed"][0] and refused["metrics"] == {}
    assert len(Store(Path("job.jsonl")).load()) == JOBS
    again = fewtune("compare", "job.toml", "--json")
    assert again[:2] == (0, out) and f"{JOBS} jobs: {JOBS} finished already, 0 to run" in again[2]
    code, out, _ = fewtune("compare", "job.toml")
    assert code == 0 and "±" in out and "baseline" in out and "cannot be" in out
    assert "failed" in out and "reviews, refused: strategy zeroshot: expected" in out


def test_a_changed_job_file_reuses_what_is_the_same(work, fewtune):
    assert fewtune("compare", "job.toml")[0] == 0
    before = Path("job.jsonl").read_bytes()
    Path("job.toml").write_text(
        JOB.replace("[13, 21]", "[13, 42]").replace("shots = [1, 2]", "shots = [1]").replace("methods.lora", "methods.new")
    )
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0 and "6 jobs: 4 finished already, 2 to run" in err
    assert Path("job.jsonl").read_bytes().startswith(before) and len(keys(Path("job.jsonl"))) == JOBS + 2
    assert [row["method"] for row in json.loads(out)["rows"]] == ["zeroshot", "new", "refused", "head"]


def test_stopped_in_between(work, fewtune, monkeypatch):
    measured, seen = worker._measured, []

    def third_is_stopped(job, *more):
        seen.append(job.key)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measured(job, *more)

    monkeypatch.setattr(worker, "_measured", third_is_stopped)
    code, out, err = fewtune("compare", "job.toml")
    assert code == 1 and "to do" in out and keys(Path("job.jsonl")) == seen[:2]
    assert f"expected {JOBS} jobs, got 2 when it was stopped" in err and "type the same command again to go on" in err.splitlines()[-1]
    code, out, err = fewtune("compare", "job.toml")
    assert code == 0 and "2 finished already" in err and sorted(keys(Path("job.jsonl"))) == sorted(set(seen))
    Path("job.jsonl").unlink()
    assert fewtune("compare", "job.toml")[:2] == (0, out)


def test_a_limit_of_time(work, fewtune):
    code, out, err = fewtune("compare", "job.toml", "--limit-seconds", "0", "--json")
    assert code == 1 and json.loads(out)["left"] == JOBS and "type the same command again" in err
    assert not Path("job.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("strategy", "strategi"), (), 'job.toml.methods.zeroshot: expected a known field, got "strategi". Did you mean "strategy"?'),
        (("shots = [1, 2]", "shots = [3]"), (), 'expected 3 examples of label "positive", got 2'),
        (("train.csv", "nowhere.csv"), (), "nowhere.csv"),
        (('"bert"', '"./nowhere"'), (), 'backbone "./nowhere"'),
        (("", ""), ("--ray-address", "auto"), "--ray-address: expected --engine ray, got --engine local"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(work, fewtune, change, arguments, message):
    Path("job.toml").write_text(JOB.replace(*change))
    code, out, err = fewtune("compare", "job.toml", *arguments)
    assert code == 2 and out == "" and message in err.splitlines()[-1] and "Traceback" not in err
    assert not Path("job.jsonl").exists()


def start(folder, *arguments, slow=0.0):
    return Apart(folder, "compare", "job.toml", *arguments, slow=slow, at="fewtune.runs.worker:_measured")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_and_started_again(tmp_path, plms, stop):
    alone, stopped = (lay(tmp_path / name, plms) for name in ("alone", "stopped"))
    code, table, _ = start(alone).finish()
    assert code == 0
    process = start(stopped, slow=2.0)  # so slow that no stall of the machine lets it come to its end
    lines = stopped / "job.jsonl"
    wait_until(lambda: lines.exists() and b"\n" in lines.read_bytes())
    time.sleep(0.1)
    process.stop(stop)
    code, _, err = process.finish()
    assert code == (-signal.SIGKILL if stop == signal.SIGKILL else 1) and "Traceback" not in err
    kept = (stopped / "job.jsonl").read_bytes()
    with open(stopped / "job.jsonl", "ab") as file:
        file.write(b'{"key": "to')  # what a crash may leave
    code, out, err = start(stopped).finish()
    assert code == 0 and out == table
    after = (stopped / "job.jsonl").read_bytes()
    whole = kept.count(b"\n")
    assert after.startswith(kept) and f"{whole} finished already" in err
    assert len(keys(stopped / "job.jsonl")) == len(set(keys(stopped / "job.jsonl"))) == JOBS


def test_ray_comes_to_the_same(tmp_path, plms):
    pytest.importorskip("ray")
    here, there = (lay(tmp_path / name, plms) for name in ("here", "there"))
    for folder in (here, there):
        (folder / "job.toml").write_text(f'{JOB}[methods.both]\nbackbone = ["llama", "bert"]\n')
    code, table, err = start(here).finish()
    assert code == 0, err
    code, out, err = start(there, "--engine", "ray", "--limit-seconds", "0").finish()
    assert code == 1 and not (there / "job.jsonl").exists(), err
    code, out, err = start(there, "--engine", "ray").finish()
    assert code == 0 and out == table, err
    assert figures(here) == figures(there)


def figures(folder):
    return {key: (one.metrics, one.right, one.failed) for key, one in Store(folder / "job.jsonl").load().items()}


def test_a_method_of_several_plms_is_judged_on_all_of_them(work, fewtune):
    Path("job.toml").write_text(
        JOB.replace("shots = [1, 2]\nseeds = [13, 21]", "seeds = [13]").split("[methods.lora]")[0]
        + '[methods.both]\nbackbone = ["llama", "bert"]\n'
    )
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0 and "2 jobs: 0 finished already, 2 to run" in err, err
    zeroshot, both = json.loads(out)["rows"]
    assert both["done"] == 1 and both["failed"] == [] and both["contrast"]["test"] == "mcnemar" and zeroshot["metric"] == "accuracy"
