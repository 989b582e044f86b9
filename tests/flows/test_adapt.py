"""`fewtune fit --adapt`: the language of the unlabelled rows is learned before the labels or beside them, said, kept in the artifact's
method, compared in a job file, and refused in one line where it cannot be."""

import json

import pytest

from fewtune import artifact
from fewtune.backbone import tiny

POOL = "review\nthe world of sports\nit was terrible\nwhat is the capital of the country?\na joy from start to finish!\n"
FIT = ("fit", "train.csv", "--text", "review", "--label", "sentiment", "--words", "positive=great,negative=terrible")


@pytest.fixture
def pool(work):
    (work / "pool.csv").write_text(POOL)
    return ("--unlabeled", "pool.csv")


def test_both_ways_are_said_and_kept(fewtune, pool, llama):
    command = (*FIT, *pool, "--backbone", llama, "--strategy", "supervised", "--steps", "2", "--out", "model", "--json")
    code, out, err = fewtune(*command, "--adapt", "tapt:steps=3,batch_size=2", "--adapt", "auxiliary:weight=1/100")
    assert code == 0 and json.loads(out)["method"] == "supervised, cloze, tapt, auxiliary, lora"
    assert "to the language of 4 unlabelled texts, token by token: 3 steps of 2, about" in err and "with weight 0.01." in err
    assert artifact.read_manifest("model")["about"]["recipe"]["adapt"] == [
        {"name": "tapt", "steps": 3, "batch_size": 2, "learning_rate": None},
        {"name": "auxiliary", "weight": 0.01, "batch_size": 8},
    ]
    assert fewtune("evaluate", "model", "train.csv", "--text", "review", "--label", "sentiment")[0] == 0


def test_a_job_file_compares_with_and_without(fewtune, pool, llama, work):
    common = f'backbone = "{llama}"\nstrategy = "supervised"\nsteps = 2\n'
    (work / "job.toml").write_text(
        "seeds = 1\n"
        '[data.reviews]\ntrain = "train.csv"\ntest = "train.csv"\nunlabeled = "pool.csv"\ntext = "review"\nlabel = "sentiment"\n'
        'words = {positive = "great", negative = "terrible"}\n'
        f"[methods.labels]\n{common}"
        f'[methods.adapted]\n{common}adapt = ["tapt:steps=2", {{name = "auxiliary", weight = 0.1}}]\n'
    )
    code, out, err = fewtune("compare", "job.toml", "--json")
    found = json.loads(out)
    assert code == 0, err
    assert [(row["method"], row["done"], row["failed"]) for row in found["rows"]] == [("labels", 1, []), ("adapted", 1, [])]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adapt", "tap"), 'expected the name of a way to adapt, got "tap". Did you mean "tapt"?'),
        (("--adapt", "tapt:steps=many"), "--adapt tapt.steps: expected a whole number"),
        (("--adapt", "tapt"), "--adapt: expected unlabelled rows, got none. Give texts with --unlabeled"),
        (("--adapt", "auxiliary", "--strategy", "zeroshot"), "--adapt: expected a delta"),
    ],
)
def test_refused_in_one_line(fewtune, work, llama, flags, message):
    code, out, err = fewtune(*FIT, "--backbone", llama, "--out", "model", *flags)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert not (work / "model").exists()


def test_a_plm_without_a_language_modelling_head_is_refused(fewtune, pool, work):
    encoder = tiny.save("t5", work / "t5", head=False)
    code, _, err = fewtune("fit", "train.csv", *pool, "--backbone", encoder, "--adapt", "tapt", "--out", "model")
    assert code == 2 and "--adapt: expected a PLM with a language-modelling head, got" in err.splitlines()[-1]
