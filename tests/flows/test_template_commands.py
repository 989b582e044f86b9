"""`fewtune import-template`: shown, and written as a task file that `fit` takes."""

from fewtune.tasks.task import Task

STARS = "*cls**sentl_0*_It_was*mask*.*sep+*\t{'0':'terrible','1':'great'}\n"


def test_shown(fewtune, tmp_path):
    (tmp_path / "sst.tsv").write_text(STARS)
    code, out, err = fewtune("import-template", tmp_path / "sst.tsv")
    assert code == 0 and out == "'{sent_0} It was {slot}.'\n0=terrible\n1=great\n"
    assert err == f"{tmp_path / 'sst.tsv'}:1: The first letter of a text is not made small.\n"


def test_written_as_a_task_file(fewtune, tmp_path):
    (tmp_path / "sst.tsv").write_text(STARS)
    command = ("import-template", tmp_path / "sst.tsv", "--labels", "negative,positive", "--out", tmp_path / "task.toml")
    code, out, _ = fewtune(*command)
    assert code == 0 and out == f"{tmp_path / 'sst.tsv'} → {tmp_path / 'task.toml'}\n"
    words = {"negative": ("terrible",), "positive": ("great",)}
    assert Task.load(tmp_path / "task.toml") == Task(("negative", "positive"), ("sent_0",), ("{sent_0} It was {slot}.",), words, name="sst")
    code, _, err = fewtune(*command)
    assert code == 2 and "--overwrite" in err


def test_refused_in_one_line(fewtune, tmp_path):
    (tmp_path / "bad.txt").write_text('{"meta": __import__("os").getcwd()} {"mask"}\n')
    code, out, err = fewtune("import-template", tmp_path / "bad.txt")
    assert code == 2 and out == "" and "bad.txt:1" in err and err.count("\n") == 1
