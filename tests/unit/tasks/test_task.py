"""Tasks as values and as TOML files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.errors import InputError, TaskError
from fewtune.tasks import KINDS
from fewtune.tasks.task import RESERVED, Task

names = st.text(min_size=1, max_size=8).filter(str.strip)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    labels = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    words = draw(st.dictionaries(st.sampled_from(labels), st.lists(names, min_size=1, max_size=2)))
    return Task.classification(
        labels,
        templates=draw(st.lists(st.text(), max_size=2)),
        words=words,
        fields=draw(st.lists(names.filter(lambda name: name not in RESERVED), min_size=1, max_size=3, unique=True)),
        label_name=draw(names),
        name=draw(names),
        description=draw(st.text(max_size=8)),
        descriptions=draw(st.dictionaries(st.sampled_from(labels), st.text(max_size=8), max_size=2)),
    )


@pytest.mark.slow
@given(tasks())
def test_plain_data_goes_through_json_and_back(task: Task) -> None:
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


@pytest.mark.slow
@given(tasks())
def test_a_task_file_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, task: Task) -> None:
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(task.to_toml(), encoding="utf-8", newline="")
    assert Task.load(path) == task


def test_a_task_file_holds_text_only() -> None:
    with pytest.raises(TaskError, match="surrogate"):
        Task.classification(["a", "\ud800"]).to_toml()


def test_the_listed_kinds() -> None:
    assert list(KINDS) == ["classification", "regression", "multilabel", "choice", "generation"]
    assert Task.classification(["a", "b"]).kind in KINDS


def test_short_forms_mean_the_long_ones() -> None:
    short = Task.classification(["no", "yes"], template="{text} {slot}", words={"no": "bad", "yes": ["good", "fine"]})
    assert short.templates == ("{text} {slot}",)
    assert short.words == {"no": ("bad",), "yes": ("good", "fine")}
    assert Task.classification(["no", "yes"], template="a", templates=["b", "c"]).templates == ("a", "b", "c")
    assert Task.classification(["no", "yes"]).templates == ()


def write(folder: Path, text: str) -> Path:
    path = folder / "task.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_reads_as_the_value(tmp_path: Path) -> None:
    lines = [
        'labels = ["no", "yes"]',
        'fields = ["review"]',
        r'template = "Review: {review}\nGood? {slot}"',
        "[words]",
        'no = "bad"',
        'yes = ["good", "fine"]',
        "[descriptions]",
        'yes = "Somebody liked it."',
    ]
    path = write(tmp_path, "\n".join(['description = "Is it good?"', *lines]))
    assert Task.load(path) == Task.classification(
        ["no", "yes"],
        template="Review: {review}\nGood? {slot}",
        fields=["review"],
        words={"no": "bad", "yes": ["good", "fine"]},
        description="Is it good?",
        descriptions={"yes": "Somebody liked it."},
    )


def test_the_shipped_example_reads() -> None:
    task = Task.load(Path(__file__).parents[3] / "examples/reviews/task.toml")
    assert (task.labels, task.fields, task.label_name) == (("negative", "positive"), ("review",), "sentiment")
    assert task.templates == ("Review: {review}\nSentiment: {slot}",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("labels = [", "TOML"),
        ("", "labels that are named"),
        ("labels = []", "task.labels"),
        ('labels = ["a", "a"]', "task.labels"),
        ('labels = ["a", " "]', "task.labels"),
        ('labels = ["a", 2]', "labels[1]"),
        ("labels = 3", "labels"),
        ('labels = ["a", "b"]\nfields = ["slot"]', "{slot} has a meaning"),
        ('labels = ["a", "b"]\nfields = ["sep"]', "{sep} has a meaning"),
        ('labels = ["a", "b"]\nfields = ["x", "x"]', "task.fields"),
        ('labels = ["a", "b"]\ntemplat = "x"', 'Did you mean "template'),
        ('labels = ["a", "b"]\ntemplate = 3', "template"),
        ('labels = ["good", "bad"]\n[words]\ngod = "x"', 'Did you mean "good"?'),
        ('labels = ["good", "bad"]\n[words]\ngood = 3', "words.good"),
        ('labels = ["good", "bad"]\ndescription = ["Good?"]', "description"),
        ('labels = ["good", "bad"]\n[descriptions]\ngod = "It is fine."', 'Did you mean "good"?'),
        ('labels = ["good", "bad"]\n[descriptions]\ngood = ["It is fine."]', "descriptions.good"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Task.load(write(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such file") as caught:
        Task.load(tmp_path / "none.toml")
    assert "none.toml" in caught.value.where
    (tmp_path / "task.toml").write_bytes(b"labels = ['\xff']")
    with pytest.raises(TaskError, match="TOML"):
        Task.load(tmp_path / "task.toml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError):
        Task.load(tmp_path)


@pytest.mark.parametrize("kind", ["clasification", "chosen"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="classification"):
        KINDS.member(Task(labels=("a", "b"), kind=kind).kind)


def test_a_kind_may_be_a_table() -> None:
    task = Task.from_dict({"labels": ["a", "b"], "kind": {"name": "regression", "low": 0, "high": 2.5}})
    assert task.kind == "regression:low=0,high=2.5"
    assert Task.from_dict({"labels": ["a", "b"], "kind": {"name": "regression", "low": None}}).kind == "regression"


def test_a_template_beside_templates_is_refused() -> None:
    with pytest.raises(InputError, match="template"):
        Task.from_dict({"labels": ["a", "b"], "template": "{text} {slot}", "templates": ["x {slot}"]})


def test_one_of_templates_may_stand_without_its_list() -> None:
    assert Task.from_dict({"labels": ["a", "b"], "templates": "1 + {text} {slot}"}).templates == ("1 + {text} {slot}",)
