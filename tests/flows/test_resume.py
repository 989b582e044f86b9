"""A fit that is killed and started again ends with the same bytes as one that was left alone."""

import re
import signal
import time
from pathlib import Path

import pytest
from apart import Apart, wait_until

from fewtune.backbone import tiny

MANY = "text,label\n" + "".join(
    f"{one} and {other},{label}\n"
    for label, words in (("positive", ("great", "fun", "joy", "good")), ("negative", ("dull", "mess", "terrible", "lifeless")))
    for one in words
    for other in words
)
"""Rows of which some measure."""


@pytest.fixture
def work(tmp_path):
    tiny.save("llama", tmp_path / "plm")
    rows = ["great fun,positive", "a dull mess,negative", "good and great,positive", "terrible lifeless,negative"]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(rows * 3) + "\n")
    return tmp_path


def start(work, out, *more, slow=0.0, steps=40):
    options = ["--backbone", "plm", "--words", "positive=great,negative=terrible", "--steps", str(steps), "--delta", "lora:dropout=0.2"]
    return Apart(work, "fit", "train.csv", "--out", out, *options, *more, slow=slow)


def done(process):
    """What it says on standard error."""
    code, _, err = process.finish()
    assert code == 0, err
    return err


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def wait_for(path):
    wait_until(lambda: any(path.parent.glob(path.name)))


@pytest.mark.parametrize("more", [(), ("--demonstrations", "similar=1")], ids=" ".join)
def test_killed_and_started_again(work, more):
    done(start(work, "alone", *more))
    for pause in (0.0, 0.3, 0.7):
        process = start(work, "killed", *more, slow=0.05)
        wait_for(work / ".killed.work" / "fit.safetensors")
        time.sleep(pause)
        process.kill()
        assert not (work / "killed").exists()
    assert "Going on with fit after step" in done(start(work, "killed", *more))
    assert content(work / "killed") == content(work / "alone")
    assert not (work / ".killed.work").exists()


def killed_at(work, file, *more):
    """What is said when a fit that was killed as soon as `file` was there is started again; it must end with the same bytes."""
    done(start(work, "alone", *more, steps=20))
    process = start(work, "killed", *more, steps=20, slow=0.05)
    wait_for(work / ".killed.work" / file)
    process.kill()
    err = done(start(work, "killed", *more, steps=20))
    assert content(work / "killed") == content(work / "alone")
    return err


def test_killed_among_the_folds_of_the_ladder(work):
    err = killed_at(work, "fit.rung-*.fold-2.safetensors", "--strategy", "ladder")
    assert re.search(r"Going on with fit\.rung-\d\.fold-1 after step 20 of 20", err)


def test_killed_among_the_members_of_pet(work):
    (work / "pool.csv").write_text(
        "text\n" + "\n".join(f"{one} fun {two}" for one in ("great", "dull", "good") for two in ("mess", "joy")) + "\n"
    )
    more = ("--unlabeled", "pool.csv", "--strategy", "pet:guard=false,patterns=2")
    err = killed_at(work, "fit.fold-2.generation-0.member-1.answers.safetensors", *more)
    assert "Going on with fit.fold-1" not in err, "whose answers are kept is not even assembled"


def test_killed_in_a_fit_that_searched(work):
    err = killed_at(work, "fit.safetensors", "--search", "templates:tried=4,guard=false", "--search", "words:guard=false")
    assert "Going on with fit after step" in err


@pytest.mark.parametrize(("file", "what"), [("fit.tapt-*", "fit.tapt-"), ("fit.fold-2", "fit.tapt-"), ("fit", "fit after")])
def test_killed_while_the_pools_language_was_learned_before_and_beside(work, file, what):
    (work / "pool.csv").write_text("text\nthe world of sports\nit was terrible\na joy from start to finish!\n")
    adapt = ("--adapt", "tapt:steps=20,batch_size=2", "--adapt", "auxiliary:weight=0.3,batch_size=2")
    err = killed_at(work, f"{file}.safetensors", "--unlabeled", "pool.csv", *adapt, "--calibration", "temperature")
    assert f"Going on with {what}" in err


def test_killed_while_weights_were_going(work):
    (work / "rows.csv").write_text(MANY)
    done(start(work, "whole", "--strategy", "supervised"))
    prune = ("compress", "whole", "--data", "rows.csv", "--by", "prune:steps=30,learning_rate=0.003", "--to")
    done(Apart(work, *prune, "alone"))
    process = Apart(work, *prune, "killed", slow=0.05)
    wait_for(work / ".killed.work" / "fit.*.prune.safetensors")
    process.kill()
    assert "prune after step" in done(Apart(work, *prune, "killed"))
    alone, killed = (
        {name: data for name, data in content(work / folder).items() if name.endswith(".safetensors")} for folder in ("alone", "killed")
    )
    assert killed == alone and len(alone) >= 3


def test_interrupted_and_started_again(work):
    done(start(work, "alone"))
    process = start(work, "stopped", slow=0.05)
    wait_for(work / ".stopped.work" / "fit.safetensors")
    process.stop(signal.SIGINT)
    code, _, err = process.finish()
    assert code == 1 and "type the same command again" in err.splitlines()[-1]
    assert "Traceback" not in err
    done(start(work, "stopped"))
    assert content(work / "stopped") == content(work / "alone")


def test_another_job_does_not_go_on_with_a_checkpoint(work):
    process = start(work, "model", slow=0.05)
    wait_for(work / ".model.work" / "fit.safetensors")
    process.kill()
    (work / "train.csv").write_text((work / "train.csv").read_text().replace("good and great", "good"))
    assert "Going on" not in done(start(work, "model"))


def test_compress_killed_and_started_again(work):
    done(start(work, "model", "--readout", "head", "--strategy", "supervised"))
    (work / "rows.csv").write_text(MANY)

    def compress(out, slow=0.0):
        options = ["--data", "rows.csv", "--to", out, "--by", "distill:layers=2,steps=40,relations=1"]
        return Apart(work, "compress", "model", *options, slow=slow)

    done(compress("alone"))
    process = compress("killed", slow=0.05)
    wait_for(work / ".killed.work" / "*.distill.safetensors")
    time.sleep(0.5)
    process.kill()
    assert not (work / "killed").exists()
    assert "Going on with" in done(compress("killed"))
    assert content(work / "killed") == content(work / "alone")
    assert not (work / ".killed.work").exists()
