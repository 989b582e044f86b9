"""TunedModel → a folder that answers without fewtune and without torch: a graph in ONNX, the tokenizer, and a short script. The script is
run on some texts before the folder is there, and must answer as the model does.

    FOLDER/model.onnx       input_ids, attention_mask → calibrated log-probabilities of the labels; the deltas are in it
          /tokenizer.json
          /task.json        labels, what stands before and behind a text, and which tokens around it
          /run.py           python run.py < texts.txt, a text a line; needs onnxruntime and tokenizers

Dimensions: B rows, T tokens, C labels.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtune import folders
from fewtune.backbone.turns import Inputs
from fewtune.deltas.int8 import Int8
from fewtune.deltas.prefix import Prefix
from fewtune.errors import ArtifactError
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.prompt.template import Field, Part, Sep, Slot, Text
from fewtune.prompt.tokens import plain_ids
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.readout.similarity import Similarity
from fewtune.tasks import kind_of

GRAPH, SCRIPT = "model.onnx", "run.py"
PROBES = ("a dull, lifeless mess", "  Great fun!  ", "It was neither good nor bad, as far as I can tell.", "word " * 3000)
"""What the script is tried on, beside a text with each special token in it: the last is longer than any model reads."""
_TOLERANCE = 1e-4
_ONLY = "Such a model answers with fewtune only."
Say = Callable[[str], None]

_RUN = '''"""The label and its probability for each line of standard input; needs onnxruntime and tokenizers."""

import json
import math
import sys
from pathlib import Path

import numpy
import onnxruntime
from tokenizers import Tokenizer

here = Path(__file__).resolve().parent
task = json.loads((here / "task.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # what looks like one in a text is text
session = onnxruntime.InferenceSession(str(here / "model.onnx"))


def tokens(text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if any(number in task["reserved"] for number in ids):  # a vocabulary that has them as pieces, too
        for token in task["special"]:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


for line in sys.stdin:
    text = line.strip()
    ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
    while len(ids := [*task["begin"], *tokens(task["before"] + text + task["behind"]), *task["end"]]) > task["max_length"]:
        ends = ends[: task["max_length"] - len(ids)]  # only the text is shortened, never what stands around it
        text = text[: ends[-1]].rstrip() if ends else ""
    ids = numpy.array([ids])
    scores = session.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0]
    print(task["labels"][scores.argmax()], f"{math.exp(scores.max()):.6f}", sep="\\t")
'''


def export(model: TunedModel, folder: str | Path, *, overwrite: bool = False, say: Say = lambda line: None) -> float:
    """Write the folder, whole or not at all; the most by which a probability differs from the model's, in float32 and without exits, on
    `probes`.

    Raises `ArtifactError` for a model that has no such form, or whose script answers otherwise, and where the extra is not installed.
    """
    folder, model = Path(folder), replace(model, exits=None)
    _check(model)
    folders.check_target(folder, overwrite=overwrite, mark=GRAPH)
    with folders.whole(folder) as temporary:
        say("Writing the graph.")
        write_graph(model, temporary / GRAPH)
        tokenizer: str = model.backbone.tokenizer.backend_tokenizer.to_str()
        plain = {**json.loads(tokenizer), "truncation": None, "padding": None}
        folders.write_file(temporary / "tokenizer.json", json.dumps(plain, ensure_ascii=False).encode())
        folders.write_file(temporary / "task.json", folders.written(_task(model)))
        folders.write_file(temporary / SCRIPT, _RUN.encode())
        apart = _apart(model, temporary)
    say(f"{SCRIPT} answers {len(probes(model))} texts as the model does; probabilities differ by {apart:.1e} at most.")
    return apart


def probes(model: TunedModel) -> list[str]:
    """What the script is tried on."""
    return [f"Great {token} fun" for token in model.backbone.tokenizer.all_special_tokens] + [*PROBES]


def write_graph(model: TunedModel, path: Path) -> None:
    """The model in ONNX, for batches and texts of any length; raises `ArtifactError` for one that cannot be written down."""
    ids_BT = torch.full((2, 7), model.backbone.tokenizer.convert_tokens_to_ids("a") or 1)
    mask = getattr(model.backbone.tokenizer, "mask_token_id", None)
    if mask is not None:
        ids_BT[:, 3] = mask
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 5:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what torch finds missing is nothing of ours
    try:
        with warnings.catch_warnings(), model.backbone.as_precision("float32"), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                Answers(model).eval(),
                (ids_BT, mask_BT),
                input_names=["input_ids", "attention_mask"],
                output_names=["log_probabilities"],
                dynamic_shapes={"ids_BT": axes, "mask_BT": axes},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of what it cannot write down torch's exporter raises whatever it trips over
        got = f"{type(error.__cause__ or error).__name__} while torch wrote it down"
        raise ArtifactError(expected="a model that has a graph", got=got, where="export-onnx", fix=_ONLY) from error
    finally:
        logging.disable(before)
    program.save(str(path))


class Answers(nn.Module):
    """The whole way from ids to calibrated log-probabilities."""

    def __init__(self, model: TunedModel) -> None:
        super().__init__()
        self.backbone: nn.Module = model.backbone.model
        self._model = model
        self._mask = None if model.backbone.causal else model.backbone.tokenizer.mask_token_id

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """log_probabilities_BC, float32."""
        model = self._model
        words = tuple(tuple(own) for own in model.asked.words[0].ids) if model.readout.needs_slot else None
        batch = Batch(ids_BT, mask_BT, None, self._slot(ids_BT, mask_BT), words)  # type: ignore[arg-type]
        output = model.backbone.at_once(Inputs(ids_BT, mask_BT))
        return model.calibrator(model.reader.scores(output, batch)).log_softmax(-1).float()

    def _slot(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Where the mask token stands, or the last token."""
        if self._mask is None:
            return mask_BT.sum(1) - 1
        slot_B: Tensor = (ids_BT == self._mask).long().argmax(1)
        return slot_B


def _check(model: TunedModel) -> None:
    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        fix = "Install the extra: pip install 'fewtune[onnx]'."
        raise ArtifactError(expected="the packages onnx, onnxscript and onnxruntime", got="not all", where="export-onnx", fix=fix)
    kind = kind_of(model.task)
    template = model.asked.templates[0]
    written = not hasattr(model.backbone.tokenizer, "backend_tokenizer")
    for wrong, got, expected in (
        (kind.offered != "task" or kind.independent or model.task.kind != "classification", model.task.kind, "one label of several"),
        (not isinstance(model.readout, Head | Similarity | Cloze), type(model.readout).__name__.lower(), "a head, a similarity or a cloze"),
        (model.backbone.seq2seq and model.readout.needs_slot, "words that a decoder writes", "an encoder or an autoregressive PLM"),
        (model.asking.passes > 1, f"{model.asking.passes} passes", "one template"),
        (model.demonstrations is not None, "demonstrations in front of it", "a text alone"),
        (len(model.task.fields) != 1, "several texts", "one"),
        (
            sum(isinstance(part, Field | Sep) for part in template.parts) != 1,
            f'"{template}"',
            "a template with the text once, in one segment",
        ),
        (model.calibrator.premise, "a calibration that asks the PLM without deltas", "a calibration of numbers alone"),
        (any(isinstance(one.delta, Int8) for one in model.deltas), "maps in eight bits", "a model in float32"),
        (any(isinstance(one.delta, Prefix) for one in model.deltas), "a prefix, which fixes their number", "rows of any number"),
        (written, "a tokenizer of another kind", "a tokenizer of the package tokenizers"),
    ):
        if wrong:
            raise ArtifactError(expected=expected, got=got, where="export-onnx", fix=_ONLY)


def _task(model: TunedModel) -> dict[str, Any]:
    """What the script has to know: the texts that are read as one with the row's own, and the tokens around them."""
    template, tokenizer, encoder = model.asked.templates[0], model.backbone.tokenizer, model.asking.encoder(0)
    at = next(number for number, part in enumerate(template.parts) if isinstance(part, Field))
    slot = next((number for number, part in enumerate(template.parts) if isinstance(part, Slot)), len(template.parts))
    start, stop = (slot + 1, len(template.parts)) if slot < at else (0, slot)
    specials = encoder.specials
    return {
        "labels": list(model.task.labels),
        "begin": [*specials.prefix, *_ids(model, template.parts[:start])],
        "before": _text(template.parts[start:at]),
        "behind": _text(template.parts[at + 1 : stop]),
        "end": [*_ids(model, template.parts[stop:]), *specials.suffix],
        "max_length": encoder.max_length,
        "special": tokenizer.all_special_tokens,
        "reserved": sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}),
    }


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _ids(model: TunedModel, parts: Sequence[Part]) -> list[int]:
    """The tokens of a slot, and of the text beyond it, which is read apart from the row's own."""
    tokenizer, slot = model.backbone.tokenizer, _slot_ids(model)
    return [number for part in parts for number in (plain_ids(tokenizer, part.text) if isinstance(part, Text) else slot)]


def _slot_ids(model: TunedModel) -> list[int]:
    """What stands in the slot: the mask token, or nothing where the text goes on there."""
    mask = model.asking.encoder(0).specials.mask
    return [] if mask is None or (model.backbone.seq2seq and model.asked.templates[0].open) else [mask]


def _apart(model: TunedModel, folder: Path) -> float:
    """The most by which the script's probabilities differ from the model's; raises `ArtifactError` where that is more than rounding."""
    texts = probes(model)
    with model.backbone.as_precision("float32"):
        wanted = model.predict(texts)
    command = [sys.executable, "-X", "utf8", str(folder / SCRIPT)]
    lines = "".join(f"{text}\n" for text in texts)
    ran = subprocess.run(command, input=lines, capture_output=True, encoding="utf-8", check=False)
    said = [line.split("\t") for line in ran.stdout.splitlines()]
    fix = "Such a model answers with fewtune only; please tell us which one it is."
    if ran.returncode or len(said) != len(texts):
        got = (ran.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ArtifactError(expected="a script that answers", got=got, where="export-onnx", fix=fix)
    apart = [abs(dict(one.probabilities)[label] - float(share)) for one, (label, share) in zip(wanted, said, strict=True)]
    same: Sequence[bool] = [difference <= _TOLERANCE for difference in apart]
    if not all(same):
        got = f"another answer to {texts[same.index(False)][:30]!r}"
        raise ArtifactError(expected="the model's own answers", got=got, where="export-onnx", fix=fix)
    return max(apart)
