"""A language model from nothing: a tokenizer learned on texts, and random weights of a size by name. Knows no corpus and no training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fewtune.backbone.backbone import Backbone
from fewtune.errors import SpecError

Objective = Literal["mlm", "clm"]
"""Masked (BERT), or autoregressive, "causal" (Llama), language modelling."""
_END = "<|endoftext|>"
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_POSITIONS = 512
_MARK = "▁"  # where a word begins
_LETTERS = 3  # a letter takes two pieces, where words begin and inside them: so a third of a vocabulary at least is left for longer ones


@dataclass(frozen=True)
class Size:
    """Blocks, width and attention heads of a model."""

    blocks: int
    width: int
    heads: int


SIZES: Mapping[str, Size] = {"tiny": Size(2, 128, 2), "mini": Size(4, 256, 4), "small": Size(4, 512, 8)}
"""The sizes of Turc et al. 2019, "Well-read students learn better", table 1."""


_EMBEDDING = 128
"""ALBERT's width of the embeddings (Lan et al. 2020, table 3, where it is the best for shared layers)."""


def make(objective: Objective, size: str, tokenizer: Any, *, length: int, seed: int, shared: bool = False) -> Backbone:
    """A random model that takes at least `length` tokens, as transformers initialises it.

    A `shared` one is an ALBERT: one block stands for all layers, and the embeddings are V × E and E × H. E is at most half the width,
    so that this is the smaller. Raises `SpecError` for an unknown size, and for a shared autoregressive model.
    """
    import transformers

    if size not in SIZES:
        raise SpecError(expected="a size by name", got=f'"{size}"', where="--size", fix=f"Known: {', '.join(SIZES)}.")
    if shared and objective != "mlm":
        fix = "Take --objective mlm, or leave --shared out."
        raise SpecError(expected="a masked model, as ALBERT is one", got=f"--objective {objective}", where="--shared", fix=fix)
    shape, kind = SIZES[size], "albert" if shared else {"mlm": "bert", "clm": "llama"}[objective]
    inner = 4 * shape.width if objective == "mlm" else -(-8 * shape.width // 3 // 64) * 64  # of a gated layer as many weights
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        intermediate_size=inner,
        max_position_embeddings=max(_POSITIONS, length),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        **({"embedding_size": min(_EMBEDDING, shape.width // 2)} if shared else {}),
    )
    wanted = transformers.AutoModelForMaskedLM if objective == "mlm" else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = wanted.from_config(config)
    tokenizer.model_max_length = config.max_position_embeddings
    return Backbone(model.float(), tokenizer, name=f"{kind}-{size}")


def learn_tokenizer(objective: Objective, texts: Callable[[], Iterable[str]], *, vocabulary: int) -> Any:
    """A tokenizer with at most `vocabulary` pieces, learned on texts: WordPiece without capitals and accents (BERT's) for masked models,
    byte-level BPE (GPT-2's) for autoregressive ones. The same texts give the same pieces; they are read once or twice."""
    return _wordpiece(texts, vocabulary) if objective == "mlm" else _bytes(texts(), vocabulary)


def _bytes(texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer(add_prefix_space=False)
    learned.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=2, show_progress=False, special_tokens=[_END])
    return PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, eos_token=_END)


def _wordpiece(texts: Callable[[], Iterable[str]], vocabulary: int) -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    pieces = dict.fromkeys([*_SPECIALS, *_pieces(texts, vocabulary)])
    listed = BertWordPieceTokenizer({piece: number for number, piece in enumerate(list(pieces)[:vocabulary])}, lowercase=True)
    return BertTokenizerFast(tokenizer_object=listed._tokenizer)


def _pieces(texts: Callable[[], Iterable[str]], vocabulary: int) -> list[str]:
    """WordPiece's pieces, those of single letters first.

    `tokenizers` numbers the letters inside words as it meets them, which differs from run to run. So beginnings of words are marked
    instead, with a letter of their own, and pieces without it are those that go on.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    letters = _letters(texts(), vocabulary // _LETTERS, normalizer.normalize_str)
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizer
    learned.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[_MARK, *letters],
        limit_alphabet=len(letters) + 1,
    )
    learned.train_from_iterator(texts(), trainer)
    by_number = sorted(learned.get_vocab().items(), key=lambda piece: piece[1])
    merged = [piece[1:] if piece.startswith(_MARK) else f"##{piece}" for piece, _ in by_number if len(piece) > 1]
    inside = [f"##{letter}" for letter in letters if len(words.pre_tokenize_str(normalizer.normalize_str(f"a{letter}"))) == 1]
    return [*letters, *inside, *filter(None, merged)]


def _letters(texts: Iterable[str], most: int, normalize: Callable[[str], str]) -> list[str]:
    """The `most` frequent letters, in their own order. What is rarer is unknown: a corpus of the web has letters enough of all scripts to
    fill a vocabulary."""
    written, counts = Counter[str](), Counter[str]()
    for text in texts:
        written.update(text)
    for letter, count in written.items():
        counts.update(dict.fromkeys("".join(normalize(letter).split()), count))
    counts.pop(_MARK, None)
    return sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:most])
