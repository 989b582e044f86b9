"""SetFit on given rows, in its own virtual environment: jobs as JSON lines on standard input, a result line for each on standard output.

Trained as its users do: the defaults of its trainer, on a sentence encoder with mean pooling and normalised embeddings, with its
logistic head. Knows nothing of fewtune.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression


def body(folder: str) -> SentenceTransformer:
    """The sentence encoder as the hub has it."""
    transformer = models.Transformer(folder, max_seq_length=256)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train on the job's rows and label its test texts; seconds of training without loading."""
    with tempfile.TemporaryDirectory() as folder:
        model = SetFitModel(model_body=body(job["folder"]), model_head=LogisticRegression(), labels=job["labels"])
        arguments = TrainingArguments(output_dir=folder, seed=job["seed"], report_to="none", save_strategy="no", show_progress_bar=False)
        rows = Dataset.from_dict({"text": job["texts"], "label": job["targets"]})
        clock, processor = time.perf_counter(), time.process_time()
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        took = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    embeddings = model.model_body.encode(job["test"], batch_size=32)
    return {**took, "answers": [int(answer) for answer in model.model_head.predict(embeddings)]}


def main() -> None:
    """A result line for each job line; whatever the library prints goes to standard error."""
    out = sys.stdout
    for line in sys.stdin:
        job = json.loads(line)
        torch.set_num_threads(job["threads"])
        with contextlib.redirect_stdout(sys.stderr):
            result = run(job)
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
