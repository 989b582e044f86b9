"""`fewtune params` and `fewtune inspect` as a user types them, on a tiny model folder."""

import json

import pytest

STEP = ("--length", "8", "--batch-size", "2")


def fit(fewtune, llama, *more):
    words = ("--words", "positive=great|good,negative=terrible")
    code, _, err = fewtune(
        "fit", "train.csv", "--out", "model", "--backbone", llama, "--steps", "20", "--learning-rate", "0.05", *words, *more
    )
    assert code == 0, err
    return err


def test_params_of_one_method(work, fewtune, llama):
    code, out, err = fewtune("params", "--backbone", llama, "--delta", "lora:rank=4", *STEP, "--json")
    assert code == 0, err
    found = json.loads(out)
    (method,) = found["methods"]
    assert method["delta"] == "lora:rank=4" and method["trained_parameters"] == method["stored_parameters"] == 3 * 4 * (32 + 32 + 32 + 16)
    assert method["share"] == pytest.approx(method["trained_parameters"] / found["backbone_parameters"])
    assert set(method["seconds"]) == {"step", "states"} and method["seconds"]["step"] > 0
    assert set(method["bytes"]) == {"task", "hundred_tasks", "hundred_copies", "step"}
    assert 0 < method["bytes"]["task"] < method["bytes"]["hundred_tasks"] < method["bytes"]["hundred_copies"]
    assert (found["length"], found["batch_size"]) == (8, 2)


def test_what_params_says_of_a_task_is_what_fit_writes(work, fewtune, llama):
    fit(fewtune, llama, "--delta", "lora:rank=4", "--delta", "subset:part=norms")
    _, out, _ = fewtune("params", "--backbone", llama, "--delta", "lora:rank=4", "--delta", "subset:part=norms", *STEP, "--json")
    (method,) = json.loads(out)["methods"]
    assert method["bytes"]["task"] == sum(path.stat().st_size for path in (work / "model").glob("*.safetensors"))
    assert method["trained_parameters"] == json.loads((work / "model/manifest.json").read_text())["trained_parameters"]


def test_params_of_the_usual_methods(work, fewtune, llama):
    code, out, err = fewtune("params", "--backbone", llama, *STEP)
    assert code == 0, err
    for name in ("subset:part=all", "lora", "adapter", "ia3", "soft-prompt"):
        assert name in err
    assert "100.00%" in out and "expected biases to train" in " ".join(out.split())
    code, out, _ = fewtune("params", "--backbone", llama, *STEP, "--readout", "head", "--labels", "a,b,c", "--json")
    methods = json.loads(out)["methods"]
    assert code == 0 and any("refused" in method for method in methods) and json.loads(out)["readout"] == "head"
    by_name = {method["delta"]: method for method in methods}
    assert by_name["lora"]["trained_parameters"] == 3 * 8 * (32 + 32 + 32 + 16) + 3 * 32 + 3


WRONG = {
    "unknown delta": (("--delta", "lorra"), 'Did you mean "lora"?'),
    "refused": (("--delta", "subset:part=biases"), "expected biases to train"),
    "too long": (("--length", "600"), "1 to 512 tokens"),
    "unknown readout": (("--readout", "hed"), 'Did you mean "head"?'),
    "unknown backbone": (("--backbone", "smolm2-135m"), 'Did you mean "smollm2-135m"?'),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_line_and_exit_code_2(work, fewtune, llama, name):
    arguments, message = WRONG[name]
    code, out, err = fewtune("params", *(() if "--backbone" in arguments else ("--backbone", llama)), *arguments)
    assert code == 2 and out == "" and message in err.splitlines()[-1]


def test_inspect(work, fewtune, llama):
    fit(fewtune, llama, "--delta", "lora:top=0.33")
    code, out, err = fewtune("inspect", "model", "train.csv", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["rows"] == 4 and found["embeddings"] == 0 and found["note"] is None
    assert [layer["step"] for layer in found["layers"]] == [0, 1, 2]
    assert [layer["moved"] > 0 for layer in found["layers"]] == [False, False, True]
    _, out, _ = fewtune("predict", "model", "train.csv", "--format", "jsonl")
    answers = [json.loads(line) for line in out.splitlines()]
    assert found["changed_rows"] == len(found["changed"]) > 0
    for changed in found["changed"]:
        answer = answers[changed["row"]]
        assert changed["text"] == answer["review"] and changed["before"]["label"] != changed["after"]["label"] == answer["label"]
        assert changed["after"]["probability"] == pytest.approx(float(answer["probability"]), abs=1e-4)
    code, out, _ = fewtune("inspect", "model", "train.csv")
    assert code == 0 and "embeddings" in out and f"{found['changed_rows']} of 4 rows changed their label" in out


def test_inspect_a_model_with_a_head(work, fewtune, llama):
    fit(fewtune, llama, "--readout", "head")
    code, out, err = fewtune("inspect", "model", "train.csv", "--text", "review", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["changed"] == [] and found["changed_rows"] is None and "no answer from before" in found["note"]
    code, out, _ = fewtune("inspect", "model", "train.csv")
    assert code == 0 and "no answer from before" in out


def test_inspect_needs_a_model_and_texts(work, fewtune, llama):
    code, _, err = fewtune("inspect", "nomodel", "train.csv")
    assert code == 2 and "nomodel" in err
    fit(fewtune, llama)
    code, _, err = fewtune("inspect", "model", "nofile.csv")
    assert code == 2 and "nofile.csv" in err


@pytest.mark.parametrize("command", ["params", "inspect"])
def test_help(fewtune, command):
    code, out, _ = fewtune(command, "--help")
    assert code == 0 and "Usage" in out


def test_the_length_of_a_fit_is_said_before_it_starts(work, fewtune, llama):
    assert "20 steps of 8, about " in fit(fewtune, llama)
