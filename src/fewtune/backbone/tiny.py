"""Random small models and tokenizers of every family, made in a second, offline, for tests and dry runs. Knows no task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TEXT = (
    "Review: a dull, lifeless mess.\nSentiment: negative",
    "Review: great fun and a joy from start to finish!\nSentiment: positive",
    "It was terrible. It was great. yes no maybe A B C D E F",
    "Text: the world of sports, business and science/technology\nLabel: world sports business science",
    "Options: question 0 1 2 3 4 5 6 7 8 9 (good) [bad] {fine}",
    "what is the capital of the country? who wrote this book? N/A",
)
"""What the tiny tokenizers are trained on."""


def tokenizer(kind: str) -> Any:
    """A small fast tokenizer: "wordpiece" (BERT's), "bpe" (byte-level, as GPT-2's) or "unigram" (SentencePiece's, with mask)."""
    makers = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}
    return makers[kind]()


def _wordpiece() -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    # Listed instead of trained, for the trainer breaks ties differently each time.
    text = " ".join(TEXT).lower()
    letters = sorted(set(text) - set(" \n"))
    continued = [f"##{letter}" for letter in letters if letter.isalnum()]
    words = sorted({word for word in re.findall(r"[a-z]+", text) if len(word) > 1})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *continued, *words]
    listed = BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=True)
    return BertTokenizerFast(tokenizer_object=listed._tokenizer, model_max_length=512)


def _bpe(mask: bool = False) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if mask else ["<|endoftext|>"]
    trained.train_from_iterator(TEXT, vocab_size=512, min_frequency=1, show_progress=False, special_tokens=special)
    if not mask:
        return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>", model_max_length=512)
    backend = trained._tokenizer
    backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", model_max_length=512, **names
    )


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for text in TEXT for letter in text})
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=letters
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.model = models.Unigram(_settled(backend, special), special.index("<unk>"))
    cls, sep = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def _settled(backend: Any, special: list[str]) -> list[tuple[str, float]]:
    """The pieces and scores without what differs from one training to the next: the last digits, and the order of equals."""
    scores = {piece: round(score, 4) for piece, score in json.loads(backend.to_str())["model"]["vocab"]}
    trained = sorted(scores.keys() - special, key=lambda piece: (-scores[piece], piece))
    return [(piece, scores[piece]) for piece in (*special, *trained)]


FAMILIES = ("bert", "roberta", "llama", "gpt2")
"""The model types that `model` can make."""


def model(family: str, *, seed: int = 0, blocks: int = 3, width: int = 32) -> tuple[Any, Any]:
    """A random language model of the family and a tokenizer that fits it; (model in float32 and eval mode, tokenizer)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    makers: dict[str, Callable[[], Any]] = {"bert": _wordpiece, "roberta": lambda: _bpe(mask=True), "llama": _bpe, "gpt2": _bpe}
    fast = makers[family]()
    shape = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": 4, "intermediate_size": 4 * width}
    if family == "gpt2":
        shape = {"n_embd": width, "n_layer": blocks, "n_head": 4}
    if family == "llama":
        shape["num_key_value_heads"] = 2
    special = {"pad_token_id": fast.pad_token_id, "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    length = {"max_position_embeddings": 514 if family == "roberta" else 512}
    config = AutoConfig.for_model(family, vocab_size=len(fast), tie_word_embeddings=True, **shape, **special, **length)
    kind = AutoModelForMaskedLM if family in ("bert", "roberta") else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = kind.from_config(config)
        _spread(made)
    config.architectures = [type(made).__name__]
    return made.float().eval(), fast


def _spread(made: Any) -> None:
    """Draw the weights wider than a fresh initialisation does, so that texts are told apart and wrong wiring shows."""
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.02)


def save(family: str, folder: str | Path, *, seed: int = 0, blocks: int = 3, width: int = 32) -> Path:
    """Write `model` as a Hugging Face model folder."""
    made, fast = model(family, seed=seed, blocks=blocks, width=width)
    made.save_pretrained(folder)
    fast.save_pretrained(folder)
    return Path(folder)
