"""What the README shows runs: its Python example and its commands, in order, with a tiny PLM in the place of the default one."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.load import load
from fewtune.cli import app as cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL))
COMMANDS = [shlex.split(line) for line in CONSOLE.splitlines() if line.startswith("fewtune ")]
WORDS = ("--words", "positive=great,negative=terrible")


@pytest.fixture
def work(tmp_path, monkeypatch):
    tiny.save("llama", tmp_path / "plm")
    rows = ["great fun and joy,positive", "a dull mess,negative"] * 3
    for name, column in {"reviews": "review", "test": "review", "new": "review", "texts": "text"}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join([f"{column},sentiment", *rows]) + "\n")
    (block,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    changes = {"smollm2-135m": "plm", "[8, 16]": "[1, 2]", "steps = 40": "steps = 2"}
    for old, new in changes.items():
        assert old in block
        block = block.replace(old, new)
    (tmp_path / "compare.toml").write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_commands_run(work, monkeypatch, capsys):
    assert len(COMMANDS) == 9
    for command in COMMANDS:
        tiny_plm = ["--backbone", "plm", *WORDS]
        more = {"fit": [*tiny_plm, "--steps", "2"], "zeroshot": tiny_plm, "search": tiny_plm}.get(command[1], [])
        command = ["plm" if word == "smollm2-135m" else word for word in command]
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err
    assert (work / "model" / "manifest.json").exists() and (work / "answers.csv").exists()


@pytest.mark.slow
def test_the_python_example_runs(work, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.setattr(job, "load_backbone", lambda name: load("plm"))
    exec(compile(block, "README.md", "exec"), {})
    assert (work / "model" / "manifest.json").exists()


def test_the_tree_names_what_is_there():
    tree = README[README.index("src/fewtune/\n") :]
    names = re.findall(r"[├└]── (\S+)", tree)
    assert len(names) > 12
    assert all((ROOT / "src" / "fewtune" / name).exists() for name in names)


def test_the_make_targets_are_there():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"setup", "demo", "test", "check"} <= set(targets)
