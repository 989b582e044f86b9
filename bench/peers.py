"""The other side of a duel: plain transformers + peft, with everything alike or as their users have it. Knows none of fewtune's code
but what a batch is.

Dimensions: B rows, T tokens, D width, K chosen rows of the vocabulary, P vectors in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

from fewtune.backbone.quiet import quiet
from fewtune.prompt.batch import Batch

IGNORED = -100  # what transformers leaves out of its loss
RATE = 5e-4
VECTORS = 20
FULL = "full"
"""The method without peft: every weight of the model is trained."""

Places = Mapping[str, Sequence[str]]
"""Name of a site → names of the modules there."""


class Peer:
    """A model that is trained step by step, as a loop over transformers + peft does it."""

    def __init__(self, parts: Sequence[nn.Module], loss: Callable[[Any], Tensor]) -> None:
        self.parts, self.loss = nn.ModuleList(parts), loss
        self.weights = [weight for weight in self.parts.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=0.01)

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.parts[0]

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(weight.numel() for weight in self.weights)

    def step(self, inputs: Any) -> None:
        """One step of training."""
        loss = self.loss(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()

    def measure(self, inputs: Any) -> float:
        """The loss without dropout."""
        modes = [(module, module.training) for module in self.parts.modules()]
        self.parts.eval()
        with torch.no_grad():
            loss = self.loss(inputs).item()
        for module, mode in modes:
            module.training = mode
        return loss


def config_of(method: str, *, task_type: str, places: Places | None = None, blocks: Sequence[int] | None = None) -> peft.PeftConfig | None:
    """peft's settings of a method, with peft's own defaults where no `places` are named; None for full fine-tuning."""

    def modules(*sites: str) -> dict[str, Any]:
        return {"target_modules": [name for site in sites for name in places[site]]} if places else {}

    if method in ("lora", "dora"):
        chosen = {**modules("query", "value"), "layers_to_transform": list(blocks) if blocks else None}
        return peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, use_dora=method == "dora", task_type=task_type, **chosen)
    if method == "ia3":
        inner = {"feedforward_modules": list(places["ffn_out"])} if places else {}
        return peft.IA3Config(task_type=task_type, **modules("key", "value", "ffn_out"), **inner)
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=VECTORS)
    if method == "soft-prompt":
        return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=VECTORS)
    return None


def with_peft(model: Any, config: peft.PeftConfig | None) -> Any:
    """The model with the method in it; as it is, with every weight trained, for full fine-tuning."""
    with quiet():
        return model if config is None else peft.get_peft_model(model, config)


def load(folder: str, kind: Any = transformers.AutoModelForCausalLM) -> Any:
    """A model as transformers loads it."""
    with quiet():
        return kind.from_pretrained(folder, dtype=torch.float32)


# With everything alike


@dataclass(frozen=True)
class Start:
    """From what both sides start: the sites' modules below the stack, the head's weight and bias (nothing where label words are
    read at the slot), the vectors of a prefix or a soft prompt as peft lays them out."""

    places: Places
    head: tuple[Tensor, ...]
    vectors: Tensor | None = None


def alike(folder: str, method: str, start: Start) -> Peer:
    """The stack with the method at the very modules, under the same readout; fed with (batch, targets)."""
    stack = load(folder, transformers.AutoModel)
    model = with_peft(stack, config_of(method, task_type="FEATURE_EXTRACTION", places=start.places))
    model.train(method == FULL)  # fewtune keeps the dropout of frozen blocks off
    if start.vectors is not None:
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight.copy_(start.vectors)
    read: nn.Module = _Head(*start.head) if start.head else _Cloze(stack)
    options = {} if start.head else {"use_cache": False}

    def loss(given: tuple[Batch, Tensor]) -> Tensor:
        batch, targets = given
        hidden_BTD = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, **options).last_hidden_state
        return nn.functional.cross_entropy(read(hidden_BTD[:, -batch.ids_BT.shape[1] :], batch), targets)

    return Peer([model, read], loss)


class _Head(nn.Module):
    """A linear map on the mean of the tokens' states."""

    def __init__(self, weight_CD: Tensor, bias_C: Tensor) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.1), nn.Linear(weight_CD.shape[1], weight_CD.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(weight_CD)
            self.linear.bias.copy_(bias_C)

    def forward(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        mask_BT1 = batch.mask_BT[:, :, None].float()
        return self.linear(self.dropout((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)))


class _Cloze(nn.Module):
    """The tied LM head at the slot, for the label words alone, one a label."""

    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.embeddings = (stack.get_input_embeddings(),)  # in a tuple: no part of what is trained here

    def forward(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        rows, tokens_C = torch.arange(len(batch)), torch.tensor([word for (word,) in batch.words or ()])
        return nn.functional.linear(hidden_BTD[rows, batch.slot_B], self.embeddings[0].weight[tokens_C])


# As users have it


@dataclass(frozen=True)
class Texts:
    """Encoded texts: for each the prompt's ids, its label's number and, where a word is to be said, that word's token."""

    prompts: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    answers: tuple[int, ...] | None
    pad: int


def as_used(folder: str, method: str, texts: Texts, *, blocks: Sequence[int] | None = None) -> Peer:
    """A classifier with its pooler and head, or a language model that says the label's word; dropout as the model's config has it."""
    kind, task_type = (transformers.AutoModelForCausalLM, "CAUSAL_LM") if texts.answers else (_CLASSIFIER, "SEQ_CLS")
    model = with_peft(load(folder, kind), config_of(method, task_type=task_type, blocks=blocks)).train()
    return Peer([model], lambda inputs: model(**(inputs() if callable(inputs) else inputs)).loss)


_CLASSIFIER = transformers.AutoModelForSequenceClassification


def random_batches(texts: Texts, *, size: int, length: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches in random order, pass after pass, padded to `length` tokens, or to the longest of each where it is 0."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(texts.prompts), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield inputs_of(texts, order[start : start + size], length=length)


def inputs_of(texts: Texts, rows: Sequence[int], *, length: int) -> dict[str, Tensor]:
    """The rows padded on the right; where a word is to be said, it stands behind its prompt and is the only token with a label."""
    prompts = [texts.prompts[row] for row in rows]
    if texts.answers is None:
        ids_BT, mask_BT = _padded(prompts, texts.pad, length)
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": torch.tensor([texts.labels[row] for row in rows])}
    answers = [texts.answers[row] for row in rows]
    ids_BT, mask_BT = _padded([(*prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)], texts.pad, length)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        labels_BT[number, len(prompt)] = answer
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}


def _padded(rows: Sequence[Sequence[int]], pad: int, length: int) -> tuple[Tensor, Tensor]:
    width = max(length, *map(len, rows))
    ids_BT = torch.full((len(rows), width), pad)
    mask_BT = torch.zeros_like(ids_BT)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row)
        mask_BT[number, : len(row)] = 1
    return ids_BT, mask_BT
