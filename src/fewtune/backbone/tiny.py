"""Random small models and tokenizers of every family, made in a second, offline, for tests and dry runs. Knows no task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewtune.backbone.families import FAMILIES as FAMILY_TABLE
from fewtune.backbone.load import WITH_HEAD

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


def _qwen() -> Any:
    """The byte-level pieces in the class that transformers reads them into for Qwen2, whatever a folder says."""
    from transformers import Qwen2Tokenizer

    pieces = json.loads(_bpe().backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(pieces["vocab"], [tuple(merge) for merge in pieces["merges"]], model_max_length=512)


def _unigram(mask: bool = True) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"] if mask else ["<pad>", "</s>", "<unk>"]
    letters = sorted({letter for text in TEXT for letter in text})
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=letters
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.model = models.Unigram(_settled(backend, special), special.index("<unk>"))
    if not mask:
        ending = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))])
        backend.post_processor = ending
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            extra_special_tokens=["<extra_id_0>", "<extra_id_1>"],
            model_max_length=512,
        )
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


_GROUPED = {"num_key_value_heads": 2}

_SETTINGS: dict[str, dict[str, Any]] = {
    # Two groups of blocks for the steps, and embeddings narrower than the states.
    "albert": {"num_hidden_groups": 2, "embedding_size": 16},
    "bert": {},
    # As in DeBERTa-v3.
    "deberta-v2": {
        **{"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
        **{"norm_rel_ebd": "layer_norm", "position_biased_input": False},
    },
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "gemma": {**_GROUPED, "head_dim": 16},
    # Every second block sees the last few tokens only.
    "gemma3_text": {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "gpt2": {},
    "llama": _GROUPED,
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 2},
    "mpnet": {},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    # As the real ones, they have a single segment.
    "roberta": {"type_vocab_size": 1},
    "t5": {"d_kv": 16, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
    "xlm-roberta": {"type_vocab_size": 1},
}
"""What is not as the configurations have it by default, so that each family shows what it has of its own."""

FAMILIES = tuple(_SETTINGS)
"""The model types that `model` can make."""

_TOKENIZERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("bert", "distilbert", "electra"), _wordpiece),
    **dict.fromkeys(("modernbert", "mpnet", "roberta"), lambda: _bpe(mask=True)),
    **dict.fromkeys(("gemma", "gemma3_text", "gpt2", "llama"), _bpe),
    **dict.fromkeys(("qwen2", "qwen3"), _qwen),
    **dict.fromkeys(("albert", "deberta-v2", "xlm-roberta"), _unigram),
    "t5": lambda: _unigram(mask=False),
}

_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SHAPES = {
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim"),
    "gpt2": ("n_embd", "n_layer", "n_head", "n_inner"),
    "t5": ("d_model", "num_layers", "num_heads", "d_ff"),
}
"""What configurations call width, blocks, heads and the width inside the feed-forward part, where not as in `_SHAPE`."""


_LEAST_TOKENS = 128
"""A model may have more tokens than its tokenizer, as DeBERTa and T5 do."""


def model(family: str, *, seed: int = 0, blocks: int = 3, width: int = 32, head: bool = True) -> tuple[Any, Any]:
    """A random language model of the family and a tokenizer that fits it; (model in float32 and eval mode, tokenizer).

    Without its LM `head` it is the stack alone: of T5 the encoder.
    """
    import transformers

    fast = _TOKENIZERS[family]()
    settings = _settings(family, fast, blocks=blocks, width=width)
    config = transformers.AutoConfig.for_model(family, vocab_size=max(len(fast), _LEAST_TOKENS), **settings)
    known = FAMILY_TABLE[family]
    kind = WITH_HEAD[known.objective] if head else known.without_head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(transformers, kind).from_config(config)
        _spread(made)
    config.architectures = [type(made).__name__]
    return made.float().eval(), fast


def _settings(family: str, fast: Any, *, blocks: int, width: int) -> dict[str, Any]:
    special = {"pad_token_id": fast.pad_token_id, "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    before = fast.pad_token_id + 1 if FAMILY_TABLE[family].counts_from_padding else 0
    shape = dict(zip(_SHAPES.get(family, _SHAPE), (width, blocks, 4, 4 * width), strict=True))
    length = {} if family == "t5" else {"max_position_embeddings": 512 + before}
    return {"tie_word_embeddings": True, **length, **special, **shape, **_SETTINGS[family]}


def _spread(made: Any) -> None:
    """Draw the weights wider than a fresh initialisation does, so that texts are told apart and wrong wiring shows."""
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.02)


def save(family: str, folder: str | Path, *, seed: int = 0, blocks: int = 3, width: int = 32, head: bool = True) -> Path:
    """Write `model` as a Hugging Face model folder."""
    made, fast = model(family, seed=seed, blocks=blocks, width=width, head=head)
    made.save_pretrained(folder)
    fast.save_pretrained(folder)
    return Path(folder)
