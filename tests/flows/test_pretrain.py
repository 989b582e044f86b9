"""`fewtune pretrain` as a user types it: a new model, a PLM that goes on, a head put on, and a small update that makes the folder again."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from apart import Apart, wait_until
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

import fewtune as fewtune_package
from fewtune import pretraining
from fewtune.backbone import tiny, update
from fewtune.backbone.load import load

SMALL = ("--length", "16", "--batch-size", "4", "--steps", "6", "--points", "2", "--held-out", "0.3")
TEXT = "\n".join(tiny.TEXT) + "\n\nanother document, great fun and terrible\n"


@pytest.fixture
def corpus(work):
    (work / "corpus.txt").write_text(TEXT * 4)
    return work


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_a_new_model(corpus, fewtune, objective):
    more = ("--whole-words",) if objective == "mlm" else ("--documents", "lines")
    command = ("pretrain", "corpus.txt", "--objective", objective, "--vocabulary", "350", *SMALL, *more)
    code, out, err = fewtune(*command, "--out", "model", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert "about" in err and "blocks are held out" in err
    assert [point["step"] for point in found["curve"]] == [0, 3, 6]
    assert found["curve"][-1]["held_out"] < found["curve"][0]["held_out"] and found["tokens_per_second"] > 0
    assert found["trained_parameters"] == found["parameters"] and found["model"] == "model"
    backbone = load("model")
    assert backbone.has_lm_head and backbone.causal == (objective == "clm") and backbone.width == 128
    card = Path("model/README.md").read_text()
    assert f"{found['curve'][-1]['held_out']:.3f}" in card and "corpus.txt" in card
    assert json.loads(Path("model/pretraining.json").read_text())["curve"] == found["curve"]
    assert not Path(".model.work").exists()
    assert {file.stat().st_mode for file in Path("model").iterdir()} == {Path("model/config.json").stat().st_mode}
    code, _, err = fewtune(*command, "--out", "model")
    assert code == 2 and "--overwrite" in err
    code, out, _ = fewtune(*command, "--out", "model", "--overwrite")
    assert code == 0 and "perplexity" in out


def test_a_new_model_whose_layers_are_one_block(corpus, fewtune):
    command = ("pretrain", "corpus.txt", "--objective", "mlm", "--shared", "--vocabulary", "350", *SMALL)
    code, out, err = fewtune(*command, "--out", "model", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["curve"][-1]["held_out"] < found["curve"][0]["held_out"] and found["shared"] is True
    assert found["trained_parameters"] == found["parameters"]
    assert "one block for all layers (ALBERT)" in Path("model/README.md").read_text()
    backbone = load("model")
    assert (backbone.depth, len(backbone.blocks), backbone.parameters) == (2, 1, found["parameters"])
    plain, tokenizer = AutoModelForMaskedLM.from_pretrained("model").eval(), AutoTokenizer.from_pretrained("model")
    asked = tokenizer("great [MASK]", return_tensors="pt")
    assert torch.equal(asked["input_ids"][0], torch.tensor(backbone.tokenizer("great [MASK]")["input_ids"]))
    with torch.no_grad():
        states = backbone.forward(asked["input_ids"], asked["attention_mask"]).hidden_BTD
        torch.testing.assert_close(backbone.lm_logits(states[0], None), plain(**asked).logits[0], atol=1e-5, rtol=1e-5)
    assert fewtune(*command, "--out", "again")[0] == 0 and weights("again") == weights("model")
    code, out, err = fewtune("pretrain", "corpus.txt", "--backbone", "model", *SMALL, "--out", "further", "--json")
    assert code == 0 and json.loads(out)["parameters"] == found["parameters"], err


def test_a_plm_goes_on_with_all_its_weights(corpus, fewtune, llama):
    code, out, err = fewtune("pretrain", "corpus.txt", "--backbone", llama, *SMALL, "--out", "model", "--json", "--learning-rate", "1e-3")
    assert code == 0, err
    found = json.loads(out)
    assert found["objective"] == "clm" and found["curve"][-1]["held_out"] < found["curve"][0]["held_out"]
    assert weights("model") != weights(llama) and not Path("model/update.safetensors").exists()
    assert load("model").tokenizer_fingerprint == load(llama).tokenizer_fingerprint


def test_an_update_of_a_bare_encoder_makes_the_whole_folder_again(corpus, fewtune):
    model, tokenizer = tiny.model("bert")
    model.base_model.save_pretrained("plm")
    tokenizer.save_pretrained("plm")
    code, out, err = fewtune(
        *("pretrain", "corpus.txt", "--backbone", "plm", *SMALL, "--out", "model", "--json"),
        *("--delta", "lora:rank=2,alpha=3,sites=query+ffn_out", "--learning-rate", "1e-2"),
    )
    assert code == 0 and "no LM head" in err, err
    found = json.loads(out)
    assert found["bytes"]["update"] < found["bytes"]["model"] / 2 and found["trained_parameters"] < found["parameters"]
    before, made = load_file("plm/model.safetensors"), load_file("model/model.safetensors")
    names = [name for name in before if not torch.equal(before[name], made.get(f"bert.{name}", before[name]))]
    assert sorted(names) == sorted(
        f"encoder.layer.{block}.{place}.weight" for block in range(3) for place in ("attention.self.query", "output.dense")
    )
    shutil.copytree("plm", "again")
    update.apply(Path("again"), Path("model/update.safetensors"))
    assert load("again").fingerprint == load("model").fingerprint
    assert load("again").has_lm_head and load("again").model.config.model_type == "bert"


LOW = ("--delta", "lora:rank=2,alpha=3,sites=query+ffn_out", "--learning-rate", "1e-2")


def test_an_update_is_trained_further(corpus, fewtune):
    model, tokenizer = tiny.model("bert")
    model.base_model.save_pretrained("plm")
    tokenizer.save_pretrained("plm")
    command = ("pretrain", "corpus.txt", "--backbone", "plm", *SMALL, *LOW, "--json")
    code, out, err = fewtune(*command, "--out", "first")
    assert code == 0, err
    first = json.loads(out)["curve"]
    for where in ("first", "first/update.safetensors"):
        code, out, err = fewtune(*command, "--start", where, "--out", "second", "--overwrite", "--learning-rate", "1e-3")
        assert code == 0, err
    second = json.loads(out)["curve"]
    assert second[0]["held_out"] == pytest.approx(first[-1]["held_out"], abs=1e-3)
    assert second[-1]["held_out"] != second[0]["held_out"] and second[-1]["held_out"] < first[0]["held_out"]
    assert "from the update" in Path("second/README.md").read_text()
    shutil.copytree("plm", "again")
    update.apply(Path("again"), Path("second/update.safetensors"))
    assert load("again").fingerprint == load("second").fingerprint
    unchanged = ("--steps", "0", "--start", "first", "--out", "third", "--overwrite")
    code, _, err = fewtune(*command, *unchanged)
    assert code == 0 and weights("third") == weights("first"), err
    wider = ("pretrain", "corpus.txt", "--backbone", "plm", *SMALL, "--delta", "lora:rank=3,sites=query+ffn_out")
    directed = ("pretrain", "corpus.txt", "--backbone", "plm", *SMALL, "--delta", "lora:rank=2,alpha=3,sites=query+ffn_out,dora=true")
    for another in (wider, directed):
        code, _, err = fewtune(*another, *unchanged)
        assert code == 2 and "--start: expected an update of plm by these deltas" in err


@pytest.mark.parametrize(("more", "said"), [
    ((), "--objective: expected an objective"),
    (("--objective", "mlm", "--size", "huge"), "Known: tiny, mini, small"),
    (("--objective", "mlm", "--delta", "lora"), "Name a --backbone"),
    (("--objective", "mlm", "--length", "4"), "--length: expected at least 8"),
    (("--objective", "mlm", "--epochs", "0"), "--epochs: expected a number above 0"),
    (("--objective", "mlm", "--epochs", "inf"), "--epochs: expected a number above 0"),
    (("--objective", "mlm", "--device", "none"), '--device: expected a device of this machine, got "none"'),
    (("--objective", "mlm", "--held-out", "1.5"), "--held-out: expected a share"),
    (("--objective", "mlm", "--masked", "0"), "--masked: expected a share"),
    (("--backbone", "PLM", "--masked", "0.3"), "--masked: expected a masked model"),
    (("--objective", "clm", "--whole-words", "--vocabulary", "350"), "--whole-words: expected a masked model"),
    (("--objective", "mlm", "--length", "512", "--vocabulary", "350"), "at least two blocks"),
    (("--objective", "clm", "--shared", "--vocabulary", "350"), "--shared: expected a masked model"),
    (("--backbone", "PLM", "--shared"), "--shared: expected a model from nothing"),
    (("--backbone", "PLM", "--objective", "mlm"), "which learns clm"),
    (("--backbone", "PLM", "--length", "2000"), "--length: expected at most 512"),
    (("--backbone", "PLM", "--delta", "ia3"), "Take lora"),
    (("--backbone", "PLM", "--delta", "lora", "--delta", "lora", "--length", "16"), "--delta: expected one delta at each place"),
    (("--backbone", "PLM", "--delta", "lora:dropout=0.5"), "--delta lora:dropout: expected no dropout"),
    (("--backbone", "PLM", "--start", "none"), "--start: expected a PLM and low-rank deltas"),
    (("--backbone", "PLM", "--delta", "lora", "--start", "none"), "none: expected a low-rank update"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(corpus, fewtune, llama, more, said):
    (corpus / "corpus.txt").write_text(TEXT)
    code, out, err = fewtune("pretrain", "corpus.txt", "--out", "model", *(llama if one == "PLM" else one for one in more))
    assert code == 2 and said in err and "Traceback" not in err and not out
    assert not Path("model").exists()


@pytest.mark.parametrize("rate", ["1000", "1e30"])
def test_what_diverges_is_refused(corpus, fewtune, llama, rate):
    command = ("pretrain", "corpus.txt", "--backbone", llama, *SMALL, "--learning-rate", rate)
    code, _, err = fewtune(*command, "--out", "model")
    assert code == 2 and "expected a finite" in err and "Lower --learning-rate" in err and not Path("model").exists()


def test_ctrl_c_while_the_corpus_is_read_leaves_no_part_of_it(corpus, fewtune, llama, monkeypatch):
    def stopped(tokenizer, texts):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "plain_batch", stopped)
    code, _, err = fewtune("pretrain", "corpus.txt", "--backbone", llama, *SMALL, "--out", "model")
    assert code == 130 and err.splitlines()[-1] == "Stopped." and not list(Path(".model.work").iterdir())


def test_words_are_learned_whole_and_judged_by_tokens(corpus, fewtune):
    tiny.save("bert", corpus / "plm")
    command = ("pretrain", "corpus.txt", "--backbone", "plm", *SMALL, "--steps", "0", "--json", "--overwrite", "--out", "model")
    losses = [json.loads(fewtune(*command, *more)[1])["curve"][0]["held_out"] for more in ((), ("--whole-words",))]
    assert losses[0] == losses[1]


def test_a_file_that_is_not_there_is_refused(work, fewtune):
    code, _, err = fewtune("pretrain", "none.txt", "--objective", "mlm", "--out", "model")
    assert code == 2 and "none.txt: expected a text file" in err


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff"])
def test_a_file_without_text_is_refused(work, fewtune, text):
    (work / "empty.txt").write_text(text)
    for objective in ("mlm", "clm"):
        code, _, err = fewtune("pretrain", "empty.txt", "--objective", objective, "--out", "model")
        assert code == 2 and "corpus: expected at least two blocks of text, got 0" in err


def test_text_of_which_the_plm_knows_no_token_is_refused(corpus, fewtune):
    plm = str(tiny.save("bert", corpus / "plm"))
    (corpus / "other.txt").write_text("\u4e2d\u6587 " * 400)
    code, _, err = fewtune("pretrain", "other.txt", "--backbone", plm, *SMALL, "--out", "model")
    assert code == 2 and "expected held-out tokens that the PLM knows, got none" in err


def test_the_usual_delta_fits_projections_that_are_one(corpus, fewtune):
    plm = str(tiny.save("gpt2", corpus / "plm"))
    code, _, err = fewtune("pretrain", "corpus.txt", "--backbone", plm, *SMALL, "--delta", "lora", "--out", "model")
    assert code == 0 and "in the whole model alone: no update.safetensors" in err, err
    assert weights("model") != weights(plm)


def test_an_update_of_a_plm_whose_embeddings_are_apart_can_be_loaded(corpus, fewtune):
    model, tokenizer = tiny.model("bert")
    model.base_model.config.tie_word_embeddings = False
    model.base_model.save_pretrained("plm")
    tokenizer.save_pretrained("plm")
    code, _, err = fewtune("pretrain", "corpus.txt", "--backbone", "plm", *SMALL, *LOW, "--out", "model")
    assert code == 0, err
    update.apply(Path("plm"), Path("model/update.safetensors"))
    assert load("plm").fingerprint == load("model").fingerprint


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_bfloat16_learns_about_the_same(corpus, fewtune, objective):
    command = ("pretrain", "corpus.txt", "--objective", objective, "--vocabulary", "350", *SMALL, "--json")
    found = {}
    for precision in ("float32", "bfloat16"):
        code, out, err = fewtune(*command, "--precision", precision, "--out", precision)
        assert code == 0, err
        found[precision] = json.loads(out)
    assert [one["precision"] for one in found.values()] == ["float32", "bfloat16"]
    curves = [[point["held_out"] for point in one["curve"]] for one in found.values()]
    assert curves[0] != curves[1] and curves[0] == pytest.approx(curves[1], rel=0.02)


def test_a_step_of_two_processes_is_that_of_one_which_accumulates_two(corpus, fewtune):
    settings = ["--objective", "mlm", "--vocabulary", "350", "--length", "16", "--batch-size", "4", "--steps", "6", "--points", "2"]
    code, out, err = fewtune("pretrain", "corpus.txt", *settings, "--accumulate", "2", "--out", "alone", "--json")
    assert code == 0, err
    command = [sys.executable, "-m", "fewtune", "pretrain", "corpus.txt", *settings, "--out", "both", "--json"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**world, "RANK": str(rank)})
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert said[1] == ("", ""), "the first one speaks"
    one, both = json.loads(out)["curve"], json.loads(said[0][0])["curve"]
    assert [point["tokens"] for point in both] == [point["tokens"] for point in one] == [0, 384, 768]
    for name in ("held_out", "loss"):
        assert [point[name] for point in both[1:]] == pytest.approx([point[name] for point in one[1:]], abs=1e-4)
    made = [load_file(f"{name}/model.safetensors") for name in ("alone", "both")]
    for name, weight in made[0].items():
        torch.testing.assert_close(weight, made[1][name], atol=2e-4, rtol=1e-3)


def test_two_workers_of_ray_write_the_bytes_of_two_processes(corpus, fewtune, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(fewtune_package.__file__).parents[1]))
    given = ["pretrain", "corpus.txt", "--objective", "mlm", "--vocabulary", "350", *SMALL]
    code, out, err = fewtune(*given, "--engine", "ray", "--workers", "2", "--out", "ray", "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == "ray" and "6 steps of 8" in err and not Path(".ray.work").exists()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fewtune"]
    done = subprocess.run(
        [*launch, *given, "--out", "two"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert weights("ray") == weights("two")
    code, _, err = fewtune(*given, "--workers", "2", "--out", "none")
    assert code == 2 and "--workers: expected --engine ray" in err


def start(work, out, slow=0.0):
    command = ["pretrain", "corpus.txt", "--objective", "mlm", "--vocabulary", "350", "--out", out]
    return Apart(work, *command, "--length", "16", "--batch-size", "4", "--steps", "30", "--points", "10", slow=slow)


def test_killed_and_started_again_it_ends_with_the_same_bytes(corpus):
    code, _, err = start(corpus, "alone").finish()
    assert code == 0, err
    process = start(corpus, "killed", slow=0.1)
    wait_until((corpus / ".killed.work" / "pretrain.safetensors").exists)
    time.sleep(0.7)
    process.kill()
    assert not (corpus / "killed").exists()
    code, _, err = start(corpus, "killed").finish()
    assert code == 0 and "Going on with pretrain after step" in err and "Reading" not in err
    for file in (corpus / "alone").iterdir():
        assert file.read_bytes() == (corpus / "killed" / file.name).read_bytes(), file.name
