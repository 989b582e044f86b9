"""lm-evaluation-harness on given requests, in its own virtual environment: jobs as JSON lines on standard input, a result line for each
on standard output.

Used as its users do who call it from Python: `HFLM`, which sorts by length, pads, and looks continuations of one token up in the logits of
one pass. Of the job's batch sizes that one is taken which is fastest on the job's first requests. Knows nothing of fewtune.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def instances(pairs: list[list[str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, (context, continuation), number) for number, (context, continuation) in enumerate(pairs)]


def timed(model: HFLM, pairs: list[list[str]], batch_size: int) -> tuple[list[tuple[float, bool]], float, float]:
    """(answers, seconds by the clock, seconds of the processor)."""
    model.batch_size_per_gpu = batch_size
    clock, processor = time.perf_counter(), time.process_time()
    answers = model.loglikelihood(instances(pairs), disable_tqdm=True)
    return answers, time.perf_counter() - clock, time.process_time() - processor


def run(model: HFLM, job: dict[str, Any]) -> dict[str, Any]:
    """Answer the job's requests; peak memory is counted from before them, with the batch size already chosen."""
    trial = job["pairs"][: job["trial"]]
    tried = {size: timed(model, trial, size)[2] for size in job["batch_sizes"]}
    best = min(tried, key=tried.__getitem__)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    answers, clock, processor = timed(model, job["pairs"], best)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return {"seconds": clock, "processor": processor, "peak": peak, "batch_size": best, "answers": answers}


def main() -> None:
    """A line with the versions, then a result line for each job line; whatever the library prints goes to standard error."""
    out, folder, threads = sys.stdout, sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(sys.stderr):
        model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    print(json.dumps({name: version(name) for name in ("lm_eval", "torch", "transformers")}), file=out, flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            result = run(model, json.loads(line))
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
