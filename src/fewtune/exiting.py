"""`fewtune exits`: a model's folder and rows in, the folder of the same model with exits out. Knows files; what is done with the rows is
`fewtune.strategies.exits`."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from fewtune import artifact, job, registry, sources
from fewtune.exits import CRITERIA
from fewtune.exits.exits import Exits
from fewtune.folders import check_target
from fewtune.sources import Say, Source
from fewtune.strategies.exits import AddExits
from fewtune.train.fit import Progress, Session


@dataclass(frozen=True)
class Added:
    """Exits that were put into a model; `folder` holds it with them."""

    exits: Exits
    folder: Path
    seconds: float

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {
            "model": str(self.folder),
            "criterion": CRITERIA.to_text(self.exits.criterion),
            "layers": list(self.exits.layers),
            "kept": self.exits.on,
            "threshold": self.exits.threshold if self.exits.on else None,
            "parameters": self.exits.parameters,
            **self.exits.about,
            "seconds": {"exits": self.seconds},
        }


def exits_files(
    folder: Path,
    data: Source,
    out: Path | None,
    *,
    spec: AddExits,
    train: Source | None = None,
    device: str | None = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
    progress: Progress = lambda what, done, steps, loss: None,
) -> Added:
    """Read the model and the rows, add exits, write it to `out`, or where it was; raises `InputError` for what cannot be used.

    Rows need labels where points are counted. What is tuned goes on where it was when the same is asked for again.
    """
    manifest = artifact.read_manifest(folder)
    if out is not None:
        check_target(out, overwrite=overwrite)
    sources.check_source(data)
    model, target = artifact.load_one(folder, device=device), out or folder
    rows = sources.read(data, labeled=spec.promise.kind == "drop", task=model.task, say=say).examples
    taught = sources.read(train, labeled=True, task=model.task, say=say).examples if train else ()
    work = target.with_name(f".{target.name}.work")
    said = [str(spec), manifest["fingerprint"], job.plain_rows((*rows, *taught))]
    key = registry.key_of(said)
    start = time.perf_counter()
    made = spec.run(model, rows, taught=taught, session=Session(work, key, progress=progress, say=say))
    seconds = time.perf_counter() - start
    artifact.save(made, target, overwrite=True)
    shutil.rmtree(work, ignore_errors=True)
    assert made.exits is not None
    return Added(made.exits, target, seconds)
