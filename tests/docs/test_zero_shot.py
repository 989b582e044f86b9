"""What docs/how-to/zero-shot.md shows: its task file reads, and its commands run, with tiny PLMs in the place of the real ones."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from fewtune.backbone import tiny
from fewtune.cli import app as cli
from fewtune.tasks.task import Task

PAGE = (Path(__file__).parents[2] / "docs/how-to/zero-shot.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def test_the_task_file_reads(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "task.toml").write_text(block)
    task = Task.load(tmp_path / "task.toml")
    assert len(task.templates) == 2 and task.description and list(task.descriptions) == ["negative"]


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch, capsys):
    tiny.save("llama", tmp_path / "smollm2-135m")
    tiny.save("bert", tmp_path / "minilm-l6")
    rows = ["great fun and joy,positive", "a dull mess,negative"] * 3
    for name in ("texts", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["review,sentiment", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        here = [f"./{word}" if word in ("smollm2-135m", "minilm-l6") else word for word in command]
        monkeypatch.setattr(sys, "argv", [*here, *([] if "--backbone" in here else ["--backbone", "./smollm2-135m"])])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 7
