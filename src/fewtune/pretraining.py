"""`fewtune pretrain` as a straight line: text files → tokenizer and model → ids on the disk → trained → a Hugging Face model folder. Knows
every part and computes nothing itself; it prints nothing.

    OUT/                    config.json, model.safetensors, the tokenizer, README.md (the card), pretraining.json (settings and curve);
                            with low-rank deltas update.safetensors, from which the folder can be made again out of the PLM
    .OUT.work/              the corpus as ids, the checkpoint, the curve so far; gone when OUT is there
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewtune import folders, registry
from fewtune.backbone import convert, fresh, headed, store, update
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.fresh import Objective
from fewtune.backbone.load import device_of
from fewtune.data import corpus
from fewtune.data.corpus import Blocks, Documents
from fewtune.data.sampling import derive
from fewtune.deltas import DELTAS
from fewtune.deltas.lora import LowRank
from fewtune.errors import BackboneError, SpecError
from fewtune.plm import load as load_backbone
from fewtune.prompt.tokens import plain_batch, specials
from fewtune.strategies.pretrain import Learned, Pretraining
from fewtune.train.fit import Progress, Session
from fewtune.train.language import MASKED
from fewtune.train.world import ALONE, World

Say = Callable[[str], None]
ABOUT = "pretraining.json"
_LEARNED_FROM = 100_000_000  # characters of which a tokenizer learns, as many of each file
_MOST_HELD_OUT = 1024  # blocks
_WHAT = {"mlm": "Masked language model", "clm": "Autoregressive language model"}


@dataclass(frozen=True)
class Corpus:
    """Text files and how they are cut: where a document ends, the tokens of a block, the share of the blocks that is held out."""

    paths: tuple[Path, ...]
    documents: Documents = "blank"
    length: int = 128
    held_out: float = 0.01

    def __post_init__(self) -> None:
        if not self.paths:
            raise SpecError(expected="at least one text file", got="none", where="corpus", fix="Name text files, also .gz.")
        if self.length < 8:
            raise SpecError(expected="at least 8 tokens", got=str(self.length), where="--length", fix="Change the value.")
        if not 0 < self.held_out < 1:
            raise SpecError(expected="a share between 0 and 1", got=str(self.held_out), where="--held-out", fix="Change the value.")

    def identity(self) -> list[list[registry.Plain]]:
        """What the files are known by: names, sizes and times of change."""
        return [[path.name, status.st_size, status.st_mtime_ns] for path in self.paths for status in [path.stat()]]

    def sample(self, characters: int) -> Iterator[str]:
        """The beginning of each file, as many characters of each."""
        share = -(-characters // len(self.paths))
        for path in self.paths:
            taken = 0
            for piece in corpus.pieces([path], self.documents):
                if taken >= share:
                    break
                taken += len(piece.text)
                yield piece.text


@dataclass(frozen=True)
class Start:
    """What training starts from: a PLM, or a model of a size and an objective with a vocabulary learned on the corpus; `shared`: its layers
    are one block (ALBERT). With a PLM `update`: what low-rank deltas learned before, which they go on from."""

    backbone: str | None = None
    objective: Objective | None = None
    size: str = "tiny"
    vocabulary: int = 16_384
    shared: bool = False
    device: str | None = None
    update: Path | None = None


@dataclass(frozen=True)
class Pretrained:
    """What was made."""

    folder: Path
    about: dict[str, Any]
    learned: Learned = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        return {
            "model": str(self.folder),
            **self.about,
            "seconds": {"fit": self.learned.seconds},
            "tokens_per_second": self.learned.tokens_per_second,
            "bytes": {"model": sum(sizes.values()), **({"update": sizes[update.FILE]} if update.FILE in sizes else {})},
        }


def pretrain_files(
    texts: Corpus,
    out: Path,
    *,
    start: Start,
    spec: Pretraining,
    overwrite: bool = False,
    say: Say = lambda line: None,
    progress: Progress = lambda what, done, steps, loss: None,
    every_seconds: float = 60.0,
    world: World = ALONE,
) -> Pretrained:
    """Learn the language of text files and write the model to `out`. What was killed goes on when it is called again with the same.

    A checkpoint is written every so many seconds. Of several processes each reads the corpus, and the first one judges and writes.
    Raises an `InputError` for files, a PLM or settings that do not go together.
    """
    folders.check_target(out, overwrite=overwrite, mark=ABOUT)
    for path in texts.paths:
        corpus.check(path)
    backbone, new = _started(texts, start, spec, say)
    earlier = _earlier(start, spec)
    if texts.length > backbone.max_length:
        fix = "Give a shorter --length."
        raise SpecError(expected=f"at most {backbone.max_length} tokens", got=str(texts.length), where="--length", fix=fix)
    if backbone.causal and (spec.whole_words or spec.masked != MASKED):
        flag = "--whole-words" if spec.whole_words else "--masked"
        raise SpecError(expected="a masked model", got=f"{backbone.name}, which learns each next token", where=flag, fix="Leave it out.")
    work = out.with_name(f".{out.name}.work")
    blocks = _blocks(texts, backbone, work, say)
    key = _hash(
        [
            *(texts.identity(), _plain(texts), _settings(spec), backbone.fingerprint, torch.__version__, torch.get_num_threads()),
            *(world.size, earlier and earlier.digest),
        ]
    )
    session = Session(work, key, label="pretrain", progress=progress, say=say, every_seconds=every_seconds, world=world)
    learned = spec.run(backbone, blocks, new=new, earlier=earlier, session=session)
    about = {**_about(texts, start, spec, backbone, blocks, learned), **({"update": earlier.digest} if earlier else {})}
    if world.first:
        if learned.deltas and not _is_update(learned):
            say(f"What was learned is in the whole model alone: no {update.FILE}, which holds plain low-rank updates of whole linear maps.")
        _save(out, backbone, learned, new, about)
    world.told(None)  # nobody leaves before the model is there
    shutil.rmtree(work, ignore_errors=True)
    return Pretrained(out, about, learned)


def _started(texts: Corpus, start: Start, spec: Pretraining, say: Say) -> tuple[Backbone, frozenset[str]]:
    """The backbone, and the names of its weights that are still random."""
    seed, device = derive(spec.seed, "init"), device_of(start.device)
    if start.backbone is None:
        if start.objective is None:
            raise SpecError(expected="an objective for a model from nothing", got="none", where="--objective", fix="Say mlm or clm.")
        if spec.deltas:
            fix = "Name a --backbone, or leave --delta out."
            raise SpecError(expected="a PLM that deltas change", got="a model from nothing", where="--delta", fix=fix)
        tokenizer = fresh.learn_tokenizer(start.objective, lambda: texts.sample(_LEARNED_FROM), vocabulary=start.vocabulary)
        say(f"Learned a tokenizer of {len(tokenizer):,} pieces.")
        made = fresh.make(start.objective, start.size, tokenizer, length=texts.length, seed=seed, shared=start.shared)
        made.model.to(device)
        return made, frozenset(name for name, _ in made.model.named_parameters())
    if start.shared:
        fix = "Leave --backbone or --shared out."
        raise SpecError(expected="a model from nothing", got=f"--backbone {start.backbone}", where="--shared", fix=fix)
    backbone, new = load_backbone(start.backbone, device=device, say=say), frozenset[str]()
    if start.objective and start.objective != _objective(backbone):
        fix = "Leave --objective out, or take another --backbone."
        got = f"{backbone.name}, which learns {_objective(backbone)}"
        raise BackboneError(expected=f"a PLM for {start.objective}", got=got, where="--objective", fix=fix)
    if not backbone.has_lm_head:
        backbone, new = headed.with_head(backbone, seed=seed)
        say(f"{backbone.name} has no LM head: a new one is put on, tied to its embeddings.")
    headed.check_writes(backbone)
    return backbone, new


def _earlier(start: Start, spec: Pretraining) -> update.Update | None:
    """What was learned before, if it is gone on with."""
    if start.update is None:
        return None
    if start.backbone is None or not spec.deltas:
        fix = "Name the --backbone and the --delta that it was made with."
        raise SpecError(expected="a PLM and low-rank deltas", got="none", where="--start", fix=fix)
    return update.read(start.update)


def _objective(backbone: Backbone) -> Objective:
    return "clm" if backbone.causal else "mlm"


def _blocks(texts: Corpus, backbone: Backbone, work: Path, say: Say) -> Blocks:
    """The corpus as ids in a file of `work`, which is written if it is not there."""
    tokenizer, causal = backbone.tokenizer, backbone.causal
    around, wide = specials(tokenizer, causal=causal), len(tokenizer) > 1 << 16
    ending = [tokenizer.eos_token_id] if causal and tokenizer.eos_token_id is not None else around.suffix or around.sep
    key = _hash([texts.identity(), texts.documents, backbone.tokenizer_fingerprint])
    path = work / f"corpus-{key[:16]}.ids"
    if not path.exists():
        say(f"Reading {len(texts.paths)} files.")
        stream = corpus.pieces(texts.paths, texts.documents)
        corpus.write_ids(stream, lambda group: plain_batch(tokenizer, group), path, separator=ending, wide=wide)
    pad = tokenizer.pad_token_id or 0
    blocks = Blocks(corpus.read_ids(path, wide=wide), texts.length, around.prefix, around.suffix, pad)
    period, held = corpus.split(len(blocks), texts.held_out, _MOST_HELD_OUT)
    say(f"{len(blocks.ids):,} tokens in {len(blocks):,} blocks.")
    return replace(blocks, period=period, held=held)


def _about(texts: Corpus, start: Start, spec: Pretraining, backbone: Backbone, blocks: Blocks, learned: Learned) -> dict[str, Any]:
    """What is written of the training: nothing that differs from run to run."""
    return {
        "objective": _objective(backbone),
        "backbone": start.backbone,
        "size": None if start.backbone else start.size,
        "shared": None if start.backbone else start.shared,
        "corpus": {"files": [path.name for path in texts.paths], **_plain(texts), "tokens": len(blocks.ids), "blocks": len(blocks)},
        "held_out": {"blocks": len(blocks.held_out())},
        "settings": _settings(spec),
        "steps": learned.steps,
        "precision": backbone.precision,
        "parameters": backbone.parameters,
        "trained_parameters": learned.trained_parameters,
        "curve": [point.to_dict() for point in learned.curve],
    }


def _plain(texts: Corpus) -> dict[str, registry.Plain]:
    return {"documents": texts.documents, "length": texts.length, "held_out": texts.held_out}


def _settings(spec: Pretraining) -> dict[str, registry.Plain]:
    return {**registry.to_dict(spec), "deltas": [DELTAS.to_dict(delta) for delta in spec.deltas]}


def _hash(plain: Sequence[object]) -> str:
    return registry.key_of(plain)


def _save(out: Path, backbone: Backbone, learned: Learned, new: frozenset[str], about: dict[str, Any]) -> None:
    with folders.whole(out) as folder:
        if _is_update(learned):
            _write_update(folder / update.FILE, backbone, learned, new)
        for delta in reversed(learned.deltas):
            delta.merge()
        store.save(backbone, folder)
        (folder / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(about), encoding="utf-8")
        convert.settle(folder)


def _is_update(learned: Learned) -> bool:
    """Whether what was learned is B A of whole linear maps and nothing else: not DoRA, no part of fused projections, no Conv1D."""
    edits = [edit for delta in learned.deltas for _, edit in delta.edits]
    return bool(edits) and all(type(edit) is LowRank and not edit.transposed and not any(edit.padding) for edit in edits)


@torch.no_grad()
def _write_update(path: Path, backbone: Backbone, learned: Learned, new: frozenset[str]) -> None:
    """The update in half precision; the weights are rounded to the same, so that the folder is what the update makes of the PLM."""
    head = {name: weight for name, weight in backbone.model.named_parameters() if name in new}
    for weight in (*head.values(), *(weight for delta in learned.deltas for weight in delta.weights.values())):
        weight.copy_(update.half(weight))
    edits: dict[str, nn.Module] = {f"{place}.weight": edit for delta in learned.deltas for place, edit in delta.edits}
    low = {name: edit for name, edit in edits.items() if isinstance(edit, LowRank)}
    described = update.About(
        architecture=type(backbone.model).__name__,
        prefix=f"{backbone.model.base_model_prefix}.",
        scales={name: edit.scale for name, edit in low.items()},
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        settings=headed.settings(backbone.family),
    )
    update.write(path, described, {name: (edit.A_RI, edit.B_OR) for name, edit in low.items()}, head)


def card(about: dict[str, Any]) -> str:
    """The model's README.md with the Hub's metadata header, from what is known of its training."""
    fit, corpus_ = about["settings"]["fit"], about["corpus"]
    layers = ", one block for all layers (ALBERT)" if about["shared"] else ""
    before = f", from the update {about['update'][:12]} on" if "update" in about else ""
    origin = f"`{about['backbone']}`, trained further{before}" if about["backbone"] else f"from nothing, size {about['size']}{layers}"
    how = f"{about['steps']:,} steps of {fit['batch_size']} blocks of {corpus_['length']} tokens, {about['precision']}"
    rows = [
        ("start", origin),
        ("corpus", f"{', '.join(corpus_['files'])}: {corpus_['tokens']:,} tokens"),
        ("trained", f"{about['trained_parameters']:,} of {about['parameters']:,} weights; {how}"),
        ("held out", f"{about['held_out']['blocks']:,} blocks, of which nothing was learned"),
    ]
    head = ["---", "library_name: transformers", f"pipeline_tag: {'fill-mask' if about['objective'] == 'mlm' else 'text-generation'}"]
    curve = [f"| {one['step']:,} | {_shown(one['loss'])} | {one['held_out']:.3f} | {one['perplexity']:.1f} |" for one in about["curve"]]
    return "\n".join(
        [
            *(*head, *([f"base_model: {json.dumps(about['backbone'])}"] if about["backbone"] else []), "tags:", "- fewtune", "---"),
            *(f"# {_WHAT[about['objective']]}", "", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""),
            *("Losses are in nats a predicted token, perplexity is e to the held-out loss.", ""),
            *("| step | loss, training | loss, held out | perplexity |", "|--:|--:|--:|--:|", *curve, ""),
        ]
    )


def _shown(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3f}"
