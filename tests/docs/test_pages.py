"""What README, how-tos and the shipped job file show runs as it stands there, with tiny PLMs in the places of those of the catalogue."""

import gzip
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fewtune.backbone import catalogue, tiny
from fewtune.tasks.task import Task

ROOT = Path(__file__).parents[2]
TINY = {"smollm2-135m": ("llama", True), "minilm-l6": ("bert", False), "minilm-l6-mlm": ("bert", True), "mpnet-base": ("mpnet", False)}
"""A name of the catalogue → a family, and whether it has an LM head."""

ROWS = ("great fun and joy,positive", "a dull mess,negative", "a joy from start to finish,positive", "a lifeless mess,negative")
REVIEWS = "\n".join(["review,sentiment", *ROWS * 2]) + "\n"
UNLABELED = "review\n" + "".join(f"great fun and a joy {number}\na dull mess {number}\n" for number in range(105))
LABELED = "review,sentiment\n" + "".join(f"great fun {number},positive\na dull mess {number},negative\n" for number in range(16))
FILES = {"reviews.csv": REVIEWS, "more.csv": REVIEWS, "test.csv": REVIEWS, "new.csv": REVIEWS, "train.csv": REVIEWS}
FIT = "fewtune fit reviews.csv --backbone smollm2-135m --strategy supervised --steps 2 --words positive=great,negative=terrible --out model"
QUESTION = '{{"question": "who wrote this {0}?", "choices": ["book", "country {0}"], "label": "book"}}\n'
TASKS = {
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


@dataclass(frozen=True)
class Page:
    """What a page's commands find: files, and what was typed before. `toml` names the files that its TOML stands for, `brief` are flags
    that make a command quick, by its name; `apart` is what needs another process, a network or an extra, and has tests elsewhere. `ahead`
    stands before the page's Python."""

    commands: int
    files: Mapping[str, str] = field(default_factory=lambda: FILES)
    before: str = ""
    brief: Mapping[str, str] = field(default_factory=lambda: {"fit": "--steps 2"})
    apart: Sequence[str] = ()
    toml: Sequence[str] = ()
    ahead: str = ""


PAGES = {
    "README.md": Page(4, {**FILES, "texts.csv": REVIEWS}),
    "docs/how-to/fit.md": Page(4),
    "docs/how-to/unlabeled.md": Page(
        4,
        {
            **{"reviews.csv": REVIEWS, "pool.csv": UNLABELED},
            "labels.csv": "review,label,probability\n" + "a great joy,positive,0.9\na terrible mess,negative,0.8\n",
        },
        brief={"fit": "--steps 1 --words positive=great,negative=terrible"},
    ),
    "docs/how-to/deltas.md": Page(5, brief={"fit": "--steps 2 --words positive=great,negative=terrible"}),
    "docs/how-to/compare.md": Page(1, {"reviews.csv": LABELED, "test.csv": REVIEWS}, toml=("compare.toml",)),
    "docs/how-to/zero-shot.md": Page(
        4, {"texts.csv": REVIEWS, "test.csv": REVIEWS}, toml=("task.toml",), ahead='import fewtune as ft; texts = ["a joy", "a mess"]'
    ),
    "docs/how-to/choose.md": Page(
        5,
        {
            **dict.fromkeys(("questions.jsonl", "new.jsonl"), "".join(QUESTION.format(number) for number in range(8))),
            "numbered.jsonl": "".join(QUESTION.format(number) for number in range(8)).replace('"label": "book"', '"label": 1'),
            "copa.jsonl": '{"text_a": "it was terrible", "text_b": "he left", "text_c": "she stayed"}\n' * 2,
        },
    ),
    "docs/how-to/generation.md": Page(
        4,
        {
            "questions.csv": "question\nwho wrote this book?\n",
            "answered.csv": "question,answer\nwho wrote this book?,the world\nwhat is the capital?,science\n" * 2,
        },
        brief={"zeroshot": "-o written.csv"},
    ),
    "docs/how-to/multitask.md": Page(
        3, TASKS, brief={"multitask": "--steps 2", "fit": "--strategy supervised --steps 2"}, apart=("torchrun ", "--engine ray")
    ),
    "docs/how-to/exits.md": Page(
        4, {**FILES, "pool.csv": UNLABELED}, before=FIT, ahead='import fewtune as ft; model, texts = ft.load("../fast"), ["a joy"]'
    ),
    "docs/how-to/compress.md": Page(
        3,
        {"train.csv": LABELED, "pool.csv": UNLABELED},
        before=FIT.replace("reviews", "train"),
        ahead='import shutil; [shutil.copytree("../model", name) for name in ("model", "other")]',
    ),
    "docs/how-to/onnx.md": Page(1, before=FIT, apart=("pip ", "python there/")),
    "docs/how-to/harness.md": Page(1, before=FIT, apart=("pip ", "python harness/", "lm_eval")),
    "docs/how-to/pretrain.md": Page(
        11,
        {name: "\n\n".join([*tiny.TEXT * 40]) for name in ("corpus/a.txt.gz", "more/b.txt.gz")} | {"texts.csv": REVIEWS},
        brief={"pretrain": "--steps 2 --batch-size 2 --length 32 --points 1 --overwrite"},
    ),
}


def blocks(path: str, language: str) -> list[str]:
    """What stands in a page's fences of a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(path: str) -> list[str]:
    """Those of a page that are fewtune's."""
    lines = [line for block in blocks(path, "console") for line in block.splitlines()]
    return [line for line in lines if line.startswith("fewtune ") and not any(words in line for words in PAGES[path].apart)]


@pytest.fixture
def typed(tmp_path, monkeypatch, fewtune):
    """(exit code, standard error) of a command as a page has it, in a folder of its own; names of the catalogue stand for tiny PLMs."""
    for name, (family, head) in TINY.items():
        tiny.save(family, tmp_path / "plms" / name, head=head)
    monkeypatch.setattr(catalogue, "pull", lambda name, say=None: tmp_path / "plms" / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(command, brief=""):
        words = [*shlex.split(command), *shlex.split(brief)]
        words = [file for word in words for file in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        code, _, err = fewtune(*words[1:])
        return code, err

    return run


def test_every_how_to_is_tried():
    assert {path.name for path in (ROOT / "docs/how-to").glob("*.md")} == {Path(path).name for path in PAGES} - {"README.md"}


@pytest.mark.parametrize("path", PAGES)
def test_all_commands_of_a_page_are_found(path):
    assert len(commands(path)) == PAGES[path].commands


def write(files):
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        with (gzip.open if name.endswith(".gz") else open)(name, "wt", encoding="utf-8") as file:
            file.write(text)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_a_page_runs(path, typed, monkeypatch):
    page = PAGES[path]
    write(page.files)
    for name, block in zip(page.toml, blocks(path, "toml"), strict=True):
        Path(name).write_text(block)
    if page.before:
        code, err = typed(page.before)
        assert code == 0, err
    for command in commands(path):
        code, err = typed(command, page.brief.get(command.split()[1], ""))
        assert code == 0 or (code == 1 and "--target" in command), f"{command}\n{err}"
    Path("there").mkdir(exist_ok=True)
    monkeypatch.chdir("there")
    write(page.files)
    names: dict[str, object] = {}
    exec(page.ahead, names)
    for block in blocks(path, "python"):
        if not any(words in block for words in page.apart):
            exec(compile(block, path, "exec"), names)


@pytest.mark.slow
def test_the_shipped_job_file_runs(typed):
    shutil.copytree(ROOT / "examples/reviews", "reviews", ignore=shutil.ignore_patterns("compare.jsonl"))
    code, err = typed("fewtune compare reviews/compare.toml --json")
    assert code == 0, err
    # What learns nothing runs once, the third method on two numbers of rows and two draws.
    assert len(Path("reviews/compare.jsonl").read_text().splitlines()) == 1 + 1 + 4


def test_the_task_file_of_zero_shot_reads(tmp_path):
    (block,) = blocks("docs/how-to/zero-shot.md", "toml")
    (tmp_path / "task.toml").write_text(block)
    task = Task.load(tmp_path / "task.toml")
    assert len(task.templates) == 2 and task.description and list(task.descriptions) == ["negative"]


def test_the_tree_of_the_readme_names_what_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"[├└]── (\S+)", text[text.index("src/fewtune/\n") :])
    assert len(names) > 12
    assert all((ROOT / "src" / "fewtune" / name).exists() for name in names)


def test_the_make_targets_of_the_readme_are_there():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"setup", "demo", "test", "check"} <= set(targets)
