"""`score` and `complete` as a user types them."""

import csv
import io
import json
import math

import pytest

from fewtune import perplexity
from fewtune.backbone import tiny
from fewtune.sources import Source


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.save("bert", tmp_path_factory.mktemp("plm") / "bert"))


def test_each_row_is_scored_and_all_together(work, fewtune, llama):
    code, out, err = fewtune("score", "train.csv", "--backbone", llama, "--text", "review")
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 0 and list(rows[0]) == ["review", "sentiment", "tokens", "log_probability", "perplexity"]
    assert [row["review"] for row in rows][0] == "great fun and joy" and "4 texts: perplexity" in err
    code, out, _ = fewtune("score", "train.csv", "--backbone", llama, "--json")
    found = json.loads(out)
    assert code == 0 and found["exact"] and found["texts"] == 4
    for row, one in zip(rows, found["rows"], strict=True):
        assert float(row["log_probability"]) == pytest.approx(one["log_probability"], abs=1e-5) and int(row["tokens"]) == one["tokens"]
        assert one["perplexity"] == pytest.approx(math.exp(-one["log_probability"] / one["tokens"]))
    assert found["perplexity"] == pytest.approx(math.exp(-found["log_probability"] / found["tokens"]))


def test_a_masked_plm_says_that_its_figures_are_pseudo(work, fewtune, bert):
    code, out, err = fewtune("score", "train.csv", "--backbone", bert, "-o", "scored.jsonl")
    assert code == 0 and not out and "pseudo-perplexity" in err
    assert [json.loads(line)["tokens"] > 0 for line in (work / "scored.jsonl").read_text().splitlines()] == [True] * 4


def test_a_bad_row_is_named_or_skipped(work, fewtune, llama):
    (work / "gaps.csv").write_text("review,stars\ngreat fun,5\n,1\ndull,2\n")
    code, out, err = fewtune("score", "gaps.csv", "--backbone", llama, "--text", "review")
    assert code == 2 and "gaps.csv:3" in err and "--skip-bad-rows" in err
    code, out, err = fewtune("score", "gaps.csv", "--backbone", llama, "--text", "review", "--skip-bad-rows")
    assert code == 0 and [row["stars"] for row in csv.DictReader(out.splitlines())] == ["5", "2"]
    assert "2 texts" in err and "Skipped 1 bad row; the first: gaps.csv:3" in err


@pytest.mark.parametrize(("target", "said"), [("train.csv", "--overwrite"), ("none/scored.csv", "Make the folder"), ("a.parquet", "csv")])
def test_a_place_that_cannot_be_written_is_known_before_a_model_is_asked(work, fewtune, llama, monkeypatch, target, said):
    monkeypatch.setattr(perplexity, "_exact", lambda *asked: pytest.fail("a model was asked"))
    code, _, err = fewtune("score", "train.csv", "--backbone", llama, "-o", target)
    assert code == 2 and said in err


def test_rows_are_written_as_they_are_scored(work, fewtune, llama, monkeypatch):
    monkeypatch.setattr(perplexity, "_TOGETHER", 2)
    asked, exact = [], perplexity._exact

    def once(backbone, ids, batch_size):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(ids))
        return exact(backbone, ids, batch_size)

    monkeypatch.setattr(perplexity, "_exact", once)
    target = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        perplexity.score_files(Source(work / "train.csv"), target, backbone=llama)
    assert len(target.getvalue().splitlines()) == 3


def test_a_text_without_tokens_has_no_perplexity(work, fewtune, llama, monkeypatch):
    monkeypatch.setattr(perplexity, "plain_batch", lambda tokenizer, texts: [[] for _ in texts])
    code, out, err = fewtune("score", "train.csv", "--backbone", llama)
    assert code == 0 and "perplexity –" in err


def test_pairs_are_not_one_text(work, fewtune, llama):
    code, _, err = fewtune("score", "train.csv", "--backbone", llama, "--text", "review", "--text", "sentiment")
    assert code == 2 and "Name one column with --text" in err


def test_what_comes_next_and_what_fits(work, fewtune, llama, bert):
    code, out, _ = fewtune("complete", "great fun", "--backbone", llama, "--top", "3", "--tokens", "4", "--draw", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["next"]) == 3 and found["written"]["text"].startswith("great fun") and "gaps" not in found
    code, out, _ = fewtune("complete", "great fun", "--backbone", llama, "--top", "3")
    assert code == 0 and "next token" in out and repr(found["next"][0]["text"]) in out
    code, out, _ = fewtune("complete", "the [MASK] of [MASK]", "--backbone", bert)
    assert code == 0 and "gap 1" in out and "gap 2" in out
    code, out, err = fewtune("complete", "no gap", "--backbone", bert)
    assert code == 2 and "[MASK]" in err and not out


def test_drawing_at_a_temperature_near_0_takes_the_likeliest(work, fewtune, llama):
    command = ("complete", "great fun", "--backbone", llama, "--tokens", "3", "--json")
    drawn, likeliest = (json.loads(fewtune(*command, *more)[1]) for more in (("--draw", "--temperature", "1e-40"), ()))
    assert drawn["written"] == likeliest["written"]


def test_drawing_needs_to_know_how_much(work, fewtune, llama):
    code, _, err = fewtune("complete", "great fun", "--backbone", llama, "--draw")
    assert code == 2 and "expected --tokens, got none" in err
