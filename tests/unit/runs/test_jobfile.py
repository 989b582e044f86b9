"""A job file says what is compared; whatever it says wrongly is refused by key path."""

from pathlib import Path

import pytest

import fewtune as ft
from fewtune import job
from fewtune.deltas.presets import PRESETS
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.errors import SpecError
from fewtune.runs.jobfile import SEEDS, JobFile

ROOT = Path(__file__).parents[3]
DATA = '[data.reviews]\ntrain = "train.csv"\ntest = "test.csv"\n'
METHOD = '[methods.zeroshot]\nstrategy = "zeroshot"\n'


@pytest.fixture
def load(tmp_path):
    def loaded(text):
        (tmp_path / "job.toml").write_text(text, encoding="utf-8")
        return JobFile.load(tmp_path / "job.toml")

    return loaded


def test_defaults(load, tmp_path):
    file = load(DATA + METHOD)
    assert file.shots == (None,) and file.seeds == SEEDS and file.out == tmp_path / "job.jsonl" and file.folder == tmp_path
    assert file.methods["zeroshot"] == job.Settings(backbones=("smollm2-135m",), strategy="zeroshot")


def test_everything_that_can_be_said(load, tmp_path):
    file = load(
        'shots = 8\nseeds = [1, 2]\nout = "results/all.jsonl"\n'
        + DATA
        + 'text = "review+more"\nlabel = "mood"\nlabels = ["no", "yes"]\ntemplate = "1 + 1: {text} {slot}"\n'
        + 'words = {yes = ["good", "great"], no = "A+"}\nunlabeled = "pool.csv"\n'
        + '[methods.lora]\nstrategy = "supervised"\ndeltas = ["lora:rank=4", "bitfit", {name = "soft-prompt", length = 0, text = "a, b"}]\n'
        + 'search = ["words:by=ratio", {name = "templates", keep = 2}]\n'
        + 'adapt = ["auxiliary:weight=0.01", {name = "tapt", steps = 50}]\n'
        + 'readout = "cloze"\ncalibration = {name = "none"}\nsteps = 3\nlearning_rate = 1e-3\nbatch_size = 4\nmax_length = 64\n'
        + 'precision = "float32"\nbackbone = "minilm-l6"\ndemonstrations = "per_label=2,similar=1"\n'
        + '[methods.head]\nreadout = {name = "head"}\ndeltas = []\n[methods.shown]\nstrategy = "zeroshot"\ndemonstrations = {draws = 2}\n'
    )
    assert file.shots == (8,) and file.seeds == (1, 2) and file.out == tmp_path / "results" / "all.jsonl"
    data = file.data["reviews"]
    assert data.text == ("review+more",) and data.template == ("1 + 1: {text} {slot}",)
    assert data.words == {"yes": ("good", "great"), "no": ("A+",)} and data.unlabeled == "pool.csv"
    assert file.methods["lora"] == job.Settings(
        backbones=("minilm-l6",),
        strategy="supervised",
        deltas=(ft.LoRA(rank=4), *PRESETS["bitfit"], SoftPrompt(length=0, text="a, b")),
        readout=ft.Cloze(),
        calibration=ft.Uncalibrated(),
        demonstrations=ft.Demonstrations(per_label=2, similar=1),
        search=(ft.WordSearch(by="ratio"), ft.TemplateSearch(keep=2)),
        adapt=(ft.Auxiliary(weight=0.01), ft.TaskAdaptive(steps=50)),
        fit=ft.FitOptions(steps=3, learning_rate=1e-3, batch_size=4),
        max_length=64,
        precision="float32",
    )
    assert file.methods["shown"] == job.Settings(
        backbones=("smollm2-135m",), strategy="zeroshot", demonstrations=ft.Demonstrations(draws=2)
    )
    assert file.methods["head"].deltas == () and file.methods["head"].readout == ft.Head()


def test_a_model_folder_lies_beside_the_file_and_a_name_of_the_catalogue_does_not(load, tmp_path):
    for name in ("plm", "smollm2-135m"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    text = DATA + '[methods.a]\nbackbone = "plm"\n[methods.b]\nbackbone = "smollm2-135m"\n[methods.c]\nbackbone = "org/elsewhere"\n'
    assert [one.backbone for one in load(text).methods.values()] == [str(tmp_path / "plm"), "smollm2-135m", "org/elsewhere"]
    several = load(DATA + '[methods.a]\nbackbone = ["smollm2-135m", "plm"]\n').methods["a"]
    assert several == job.Settings(backbones=("smollm2-135m", str(tmp_path / "plm"))) and several.way == "ladder"


def test_a_kind_of_task_is_named_as_the_flag_does(load):
    assert load(DATA + METHOD).data["reviews"].kind == "classification"
    assert load(DATA + 'kind = "regression:low=0,high=5"\n' + METHOD).data["reviews"].kind == "regression:low=0,high=5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shotz = [8]\n" + DATA + METHOD, 'job.toml: expected a known field, got "shotz". Did you mean "shots"?'),
        (DATA + 'textt = "a"\n' + METHOD, 'job.toml.data.reviews: expected a known field, got "textt". Did you mean "text"?'),
        (DATA + METHOD + "delta = []\n", 'job.toml.methods.zeroshot: expected a known field, got "delta". Did you mean "deltas"?'),
        (
            DATA + METHOD + 'deltas = ["lorra"]\n',
            'methods.zeroshot.deltas[0]: expected the name of a delta or a preset, got "lorra"',
        ),
        (DATA + METHOD + 'deltas = [{name = "lora", rankk = 2}]\n', 'deltas[0]: expected a known field, got "rankk". Did you mean "rank"?'),
        (DATA + METHOD + "deltas = [3]\n", 'methods.zeroshot.deltas[0]: expected a table with a "name", got 3'),
        (DATA + METHOD + 'readout = "clozze"\n', 'methods.zeroshot.readout: expected the name of a readout, got "clozze"'),
        (DATA + METHOD + "readout = 4\n", 'methods.zeroshot.readout: expected a table with a "name", got 4'),
        (DATA + METHOD + 'calibration = "contex"\n', "methods.zeroshot.calibration: expected the name of a calibration"),
        (DATA + '[methods.x]\nstrategy = "zero"\n', "job.toml.methods.x.strategy: expected the name of a strategy"),
        (DATA + METHOD + 'precision = "half"\n', "job.toml.methods.zeroshot.precision: expected one of the choices"),
        (DATA + METHOD + 'steps = "many"\n', "job.toml.methods.zeroshot.steps: expected a whole number"),
        (DATA + METHOD + "steps = -1\n", "job.toml.methods.zeroshot: fit.steps"),
        (DATA + "[methods\n", "job.toml: expected TOML"),
        ("methods = 3\n" + DATA, "job.toml.methods: expected"),
        ("data = {a = 3}\n" + METHOD, "job.toml.data.a: expected"),
        ("[data]\n" + METHOD, "job.toml.data: expected entries that differ, one at least"),
        (METHOD, 'job.toml: expected the field "data"'),
        (DATA, 'job.toml: expected the field "methods"'),
        ("seeds = [1, 1]\n" + DATA + METHOD, "job.toml.seeds: expected entries that differ"),
        ("seeds = []\n" + DATA + METHOD, "job.toml.seeds: expected entries that differ"),
        ("shots = []\n" + DATA + METHOD, "job.toml.shots: expected entries that differ"),
        ("shots = [0]\n" + DATA + METHOD, "job.toml.shots: expected numbers above 0"),
        (DATA + 'task = "task.toml"\ntemplate = "{text} {slot}"\n' + METHOD, "job.toml.data.reviews: expected a task file, or"),
        ('[data.x]\ntrain = "a"\n' + METHOD, 'job.toml.data.x: expected the field "test"'),
        (DATA + 'task = "task.toml"\nkind = "multilabel"\n' + METHOD, "job.toml.data.reviews: expected a task file, or"),
        (
            DATA + METHOD + 'backbone = ["minilm-l6", "mpnet-base"]\n',
            "methods.zeroshot: --backbone: expected one PLM, got 2 for strategy zeroshot",
        ),
        (DATA + METHOD + "backbone = 3\n", "job.toml.methods.zeroshot.backbone"),
    ],
)
def test_what_is_wrong_is_refused_by_key_path(load, text, message):
    with pytest.raises(SpecError) as caught:
        load(text)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="No such file"):
        JobFile.load(tmp_path / "job.toml")


def test_the_shipped_job_file_names_what_is_there():
    file = JobFile.load(ROOT / "examples" / "reviews" / "compare.toml")
    assert list(file.methods) == ["zeroshot", "calibrated", "lora"] and file.shots == (4, 8) and len(file.seeds) == 2
    (data,) = file.data.values()
    assert all((file.folder / name).is_file() for name in (data.train, data.test, data.task))
