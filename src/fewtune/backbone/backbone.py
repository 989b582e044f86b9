"""One pre-trained language model and its tokenizer: load, forward, layer by layer. The one place that talks to transformers'
models; knows no task, no label and no delta.

Dimensions: B rows, T tokens, D width, V vocabulary, N vectors, K chosen rows of the vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewtune import registry
from fewtune.backbone import catalogue, surgery
from fewtune.backbone.families import FAMILIES, SITES, Family
from fewtune.backbone.quiet import quiet
from fewtune.errors import BackboneError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Site:
    """A place in block number `block`: the module at `path`, or the outputs `start` to `stop` of it."""

    name: str
    block: int
    path: str
    start: int
    stop: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Output:
    """What a forward gives: the stack's last states, after the final norm, float32; `hidden_BTD`."""

    hidden_BTD: Tensor


class Backbone:
    """A PLM, frozen and in evaluation mode, with names for its places.

    `name` is what the user calls it, `fingerprint` and `tokenizer_fingerprint` say which weights and which tokenizer it is.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, fingerprint: str = "", precision: Precision = "float32") -> None:
        self.name, self.model, self.tokenizer, self.precision = name, model, tokenizer, precision
        self.family = _family(model, name)
        self.fingerprint = fingerprint or fingerprint_of(model)
        self.tokenizer_fingerprint = _tokenizer_fingerprint(tokenizer)
        self.stack: nn.Module = model.base_model
        # Counted before any delta adds its own; tied weights count once.
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        surgery.freeze(model)
        model.eval()

    @property
    def causal(self) -> bool:
        """Whether the model reads from left to right."""
        return self.family.objective == "causal"

    @property
    def has_lm_head(self) -> bool:
        """Whether the model has a language-modelling head of its own."""
        return self.stack is not self.model

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The stack's blocks, from the bottom."""
        blocks = self.stack.get_submodule(self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """The size D of a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight: Tensor = next(iter(self.model.parameters()))
        return weight.device

    @property
    def max_length(self) -> int:
        """The most tokens that the model takes."""
        config = self.model.config
        positions = int(getattr(config, "max_position_embeddings", 0) or 512)
        # RoBERTa counts its positions from the padding index on.
        offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        return positions - offset

    def sites(self, name: str, *, top: float = 1.0) -> tuple[Site, ...]:
        """Every place called `name`, from the bottom, in the upper share `top` of the blocks."""
        if name not in self.family.sites:
            raise BackboneError(expected="the name of a site", got=f'"{name}"', where="sites", fix=registry.nearest(name, SITES))
        first = self.first_block(top)
        return tuple(site for block in range(first, self.depth) for site in self._sites(name, block))

    def first_block(self, top: float) -> int:
        """The lowest block of the upper share `top`; at least one block is in it."""
        return self.depth - max(1, round(self.depth * top))

    def _sites(self, name: str, block: int) -> Iterator[Site]:
        for place in self.family.sites[name]:
            module = self.blocks[block].get_submodule(place.module)
            inputs, outputs = _sizes(module)
            size = outputs // place.parts
            path = f"{self._stack_path}{self.family.blocks}.{block}.{place.module}"
            yield Site(name, block, path, place.part * size, (place.part + 1) * size, inputs, outputs)

    @cached_property
    def _stack_path(self) -> str:
        return f"{self.model.base_model_prefix}." if self.has_lm_head else ""

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed precision that was chosen for this backbone."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None = None, *, start: int = 0, below_BTD: Tensor | None = None
    ) -> Output:
        """Run the stack without the LM head; `mask_BT` is 1 at real tokens, which stand on the left.

        With `below_BTD`, the states that `below` gave for block `start`, only the blocks from there on are computed.
        """
        if below_BTD is None:
            with self.autocast():
                hidden_BTD = self.stack(**self._inputs(ids_BT, mask_BT, types_BT)).last_hidden_state
            return Output(hidden_BTD.float())
        for hidden_BTD in self._walk(ids_BT, mask_BT, types_BT, start=start, below_BTD=below_BTD):
            below_BTD = hidden_BTD
        return Output(self.norm(below_BTD))

    def below(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, *, start: int) -> Tensor:
        """The states hidden_BTD that block number `start` would be given."""
        return next(itertools.islice(self.layers(ids_BT, mask_BT, types_BT), start, None))

    def _inputs(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if types_BT is not None:
            inputs["token_type_ids"] = types_BT
        if self.causal:
            inputs["use_cache"] = False
        return inputs

    def layers(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None = None) -> Iterator[Tensor]:
        """Walk the stack: yields the embeddings, then each block's output `hidden_BTD`, before the final norm.

        The arguments of each block are what the model's own forward hands to it (masks, positions), recorded with the blocks
        left out; so the walk is the model's own computation in every family.
        """
        return self._walk(ids_BT, mask_BT, types_BT, start=0, below_BTD=None)

    def _walk(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, *, start: int, below_BTD: Tensor | None) -> Iterator[Tensor]:
        with self.autocast():
            calls = self._calls(ids_BT, mask_BT, types_BT)
        hidden_BTD: Tensor = calls[0][0][0] if below_BTD is None else below_BTD
        yield hidden_BTD
        for block, (arguments, options) in zip(self.blocks[start:], calls[start:], strict=True):
            with self.autocast():
                hidden_BTD = block(hidden_BTD, *arguments[1:], **options)
            yield hidden_BTD

    def norm(self, hidden_BTD: Tensor) -> Tensor:
        """The stack's final norm, where the family has one, in float32."""
        if self.family.final_norm is None:
            return hidden_BTD.float()
        with self.autocast():
            normed: Tensor = self.stack.get_submodule(self.family.final_norm)(hidden_BTD)
        return normed.float()

    def _calls(self, *tensors: Tensor | None) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        stand_ins = nn.ModuleList([_Recorder(calls) for _ in self.blocks])
        undo = surgery.replace(self.stack, self.family.blocks, stand_ins)
        try:
            self.stack(**self._inputs(*tensors))  # type: ignore[arg-type]
        finally:
            undo()
        return calls

    def lm_logits(self, hidden_ND: Tensor, tokens_K: Tensor) -> Tensor:
        """The LM head's logits_NK for the tokens asked for only; `hidden_ND` are states after the final norm."""
        self.require_lm_head()
        with self.autocast():
            for step in self.family.transform:
                hidden_ND = self._step(step)(hidden_ND)
            decoder = self.model.get_submodule(self.family.decoder)
            bias = decoder.bias[tokens_K] if decoder.bias is not None else None
            logits_NK = nn.functional.linear(hidden_ND, decoder.weight[tokens_K], bias)
        return logits_NK.float()

    def _step(self, step: str) -> Callable[[Tensor], Tensor]:
        if step.startswith("act:"):
            from transformers.activations import ACT2FN

            activation: Callable[[Tensor], Tensor] = ACT2FN[step.removeprefix("act:")]
            return activation
        module: nn.Module = self.model.get_submodule(step)
        return module

    def require_lm_head(self) -> None:
        """Raise `BackboneError` if the model cannot fill a slot."""
        if not self.has_lm_head:
            raise BackboneError(
                expected="a PLM with a language-modelling head",
                got=f"{self.name}, an encoder without one",
                where="--readout cloze",
                fix="Use --readout head, or another --backbone.",
            )

    @contextmanager
    def as_precision(self, precision: Precision) -> Iterator[None]:
        """Compute in `precision` for a while."""
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before


class _Recorder(nn.Module):
    """Stands in for a block: writes down its arguments and hands the hidden states on."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden_BTD: Tensor, *arguments: Any, **options: Any) -> Tensor:
        self.calls.append(((hidden_BTD, *arguments), options))
        return hidden_BTD


def load(name: str, *, device: str | None = None, say: Callable[[str], None] = lambda line: None) -> Backbone:
    """The PLM called `name`: an entry of the catalogue (fetched once), a local folder, or a hub id.

    Raises `BackboneError` for an unknown name, a family that is not in the table, a folder that transformers cannot read, weights that
    do not fill the model, or no tokenizer.
    """
    source = str(catalogue.locate(name, say=say))
    with quiet():
        model, tokenizer = _load(source, name)
    fingerprint = fingerprint_of(model)
    return Backbone(model.float().to(device or default_device()), tokenizer, name=name, fingerprint=fingerprint)


def default_device() -> str:
    """The accelerator if there is one, else the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(source: str, name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in FAMILIES:
            raise _unsupported(config.model_type, name)
        by_objective = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}
        kind = by_objective[FAMILIES[config.model_type].objective] if _has_lm_head(config) else AutoModel
        # Weights of another shape are ignored here to be named below.
        model, report = kind.from_pretrained(source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (BackboneError, MemoryError):
        raise
    except Exception as error:  # of a damaged folder transformers raises whatever it trips over
        raise _unreadable(name, error) from error
    _check_weights(report, name)
    _check_tokenizer(tokenizer, name)
    return model, tokenizer


def _unreadable(name: str, error: Exception) -> BackboneError:
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return BackboneError(
        expected="a PLM of the catalogue, a model folder or a hub id",
        got=kind + str(error).strip().split("\n")[0].rstrip("."),
        where=f'backbone "{name}"',
        fix="`fewtune backbones list` shows the names that need no hub.",
    )


def _check_weights(report: Mapping[str, Any], name: str) -> None:
    absent = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    unfit = sorted([*absent, *(key for key, *_ in report["mismatched_keys"])])
    if unfit:
        raise BackboneError(
            expected="weights for the whole model",
            got=f"none that fit for {unfit[0]}",
            where=f'backbone "{name}"',
            fix="The folder is damaged or not what its config.json says.",
        )


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    # Without its files transformers makes a tokenizer up that knows no text.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise BackboneError(
            expected="the tokenizer of the PLM",
            got="none",
            where=f'backbone "{name}"',
            fix="Put tokenizer.json and tokenizer_config.json into the folder.",
        )


def _has_lm_head(config: Any) -> bool:
    endings = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")
    return any(name.endswith(endings) for name in config.architectures or ())


def _family(model: Any, name: str) -> Family:
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        raise _unsupported(model_type, name)
    return FAMILIES[model_type]


def _unsupported(model_type: str, name: str) -> BackboneError:
    return BackboneError(
        expected="a PLM of a family in the table",
        got=f'model type "{model_type}"',
        where=f'backbone "{name}"',
        fix=f"Families: {', '.join(FAMILIES)}.",
    )


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear map; GPT-2's Conv1D keeps its weight transposed, a norm has one size."""
    module = surgery.unwrapped(module)
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.dim() == 1:
        return weight.shape[0], weight.shape[0]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return weight.shape[0], weight.shape[1]


def fingerprint_of(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of the weights, in the order of their names."""
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Padding and truncation are settings of the last call, not of the tokenizer.
    text = _without_settings(backend.to_str()) if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _without_settings(text: str) -> str:
    return json.dumps({**json.loads(text), "padding": None, "truncation": None}, sort_keys=True)
