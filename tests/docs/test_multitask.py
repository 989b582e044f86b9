"""What the page on multi-task training shows runs, with a tiny PLM in the place of the default one."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from fewtune.backbone import tiny
from fewtune.cli import app as cli

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "multitask.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)[0].splitlines()]
FILES = {
    "tasks/reviews.toml": 'labels = ["negative", "positive"]\ntemplates = ["{text} It was {slot}"]\n'
    '[words]\nnegative = "terrible"\npositive = "great"\n',
    "tasks/reviews.train.csv": "text,label\ngreat fun,positive\na dull mess,negative\n",
    "tasks/topics.yaml": "templates:\n  a: !Template\n    answer_choices: world ||| sports\n    name: plain\n"
    '    jinja: "{{text}} Label: ||| {{answer_choices[label]}}"\n',
    "tasks/topics.train.jsonl": '{"text": "the capital", "label": 0}\n{"text": "sports and fun", "label": 1}\n',
    "tasks/inference.toml": 'labels = ["yes", "no"]\ntemplates = ["{text} Is it so? {slot}"]\n',
    "tasks/inference.test.csv": "text,label\nit was great,yes\nit was terrible,no\n",
    "texts.csv": "text\na joy\na mess\n",
    "few.csv": "text,label\n" + "great fun,yes\na dull mess,no\n" * 2,
}


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch, capsys):
    tiny.save("llama", tmp_path / "plm")
    (tmp_path / "tasks").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    more = {"multitask": ["--backbone", "plm", "--steps", "2"], "fit": ["--strategy", "supervised", "--steps", "2"], "zeroshot": []}
    assert [command[1] for command in COMMANDS] == ["multitask", "zeroshot", "fit"]
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", [*command, *more[command[1]]])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err
    assert (tmp_path / "better" / "backbone.json").exists() and (tmp_path / "model" / "manifest.json").exists()
