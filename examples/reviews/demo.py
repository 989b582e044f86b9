"""The main job on sixteen labelled film reviews: zero-shot, calibrated, tuned; one table; a few answers. Run by `make demo`."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fewtune as ft
from fewtune import job
from fewtune.backbone.load import load
from fewtune.data import readers
from fewtune.data.example import Split
from fewtune.evaluation import evaluate
from fewtune.train.fit import Session

HERE = Path(__file__).parent
OUT = Path("demo-model")
CAPTION = "95 %: interval of the accuracy; trained: parameters, and their share of the model; bytes: of the artifact on disk"
SENTENCES = (
    "a tender, funny and beautifully acted little film .",
    "two hours of my life that i will never get back .",
    "it starts slowly, but by the end i was in tears .",
)


def main() -> None:
    console = Console()
    started = time.perf_counter()
    task = ft.Task.load(HERE / "task.toml")
    train = readers.read(HERE / "train.csv", text=task.fields, labeled=True, known=task.labels).examples
    test = readers.read(HERE / "test.csv", text=task.fields, labeled=True, known=task.labels).examples
    backbone = load(job.DEFAULT_BACKBONE, say=console.print)
    console.print(f"{backbone.name}: {backbone.parameters:,} weights, frozen. {len(train)} labelled reviews, {len(test)} to test on.")

    table = Table("method", "accuracy", "95 %", "seconds", "trained", "share", "bytes", title="300 test reviews", caption=CAPTION)

    def row(name: str, model: ft.TunedModel, seconds: float, size: int) -> None:
        accuracy = evaluate(model, test).measures.metrics["accuracy"]
        table.add_row(
            name,
            f"{accuracy.value:.1%}",
            f"{accuracy.low:.1%}–{accuracy.high:.1%}",
            f"{seconds:.0f}",
            f"{model.trained_parameters:,}",
            f"{model.trained_parameters / backbone.parameters:.3%}",
            f"{size:,}",
        )

    for name, calibration in (("zero-shot", ft.Uncalibrated()), ("… calibrated", ft.Contextual())):
        console.print(f"{name} …")
        start = time.perf_counter()
        model = ft.zeroshot(task, backbone=backbone, calibration=calibration)
        row(name, model, time.perf_counter() - start, 0)

    console.print("prompt-tuned with LoRA …")
    start = time.perf_counter()
    with Progress(console=console, transient=True) as bar:
        shown = bar.add_task("tuning", total=None)
        session = Session(say=console.print, progress=lambda what, done, steps, loss: bar.update(shown, completed=done, total=steps))
        model = job.tune(task, Split(train=train), backbone, job.Settings(strategy="supervised"), session=session)
    seconds = time.perf_counter() - start
    model.save(OUT, overwrite=True)
    row("LoRA-tuned", model, seconds, sum(path.stat().st_size for path in OUT.iterdir()))
    model.remove()

    console.print(table)
    for sentence, answer in zip(SENTENCES, ft.load(OUT).predict(SENTENCES), strict=True):
        console.print(f"{answer.label:9} {answer.probability:.2f}  {sentence}")
    console.print(f"The model and its card are in {OUT}/. {time.perf_counter() - started:.0f} seconds in all.")


if __name__ == "__main__":
    main()
