"""Texts as tokens: a vocabulary that comes with a model, or one that is learnt from a user's texts. By the library tokenizers.

A tokenizer stands in a folder as ``tokenizer.json``; ``vocab.json`` and ``merges.txt`` of older ones are read, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError, at_least

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rules

FILE = "tokenizer.json"
START, END = "<|startoftext|>", "<|endoftext|>"
UNKNOWN = "<|unknown|>"
_WORD_END = "</w>"
_PRIVATE = 0xE000  # first of Unicode's signs without a meaning
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's


class Tokenizer:
    """Texts -> ids [n, context]: the start token where the vocabulary has one, the text, the end token, and end tokens up to the context.

    A text that is too long is cut before its end token, which stays. What the vocabulary has no token for is left out.

    Args:
        rules: as the library tokenizers has them.
        context: T, tokens of a text at most.
        argument: what errors call it.

    Raises:
        InputError: there is no end token, or no room for one.
    """

    def __init__(self, rules: Rules, context: int, *, argument: str = "tokenizer") -> None:
        end = rules.token_to_id(END)
        if end is None:
            raise InputError(argument, "a vocabulary without it", f"one with the end token {END}")
        self.rules, self.context, self.end = rules, at_least("context", context, 2), end
        self.start: int | None = rules.token_to_id(START)
        self.size: int = rules.get_vocab_size(with_added_tokens=True)
        self._left_out = {self.start, end, rules.token_to_id(UNKNOWN)}

    @property
    def fingerprint(self) -> str:
        """Changes when its ids do."""
        return hashlib.sha256(f"{self.context} {self.rules.to_str()}".encode()).hexdigest()[:16]

    def ids(self, text: str) -> list[int]:
        """A text's own tokens, without start and end, however many they are."""
        return [token for token in self.rules.encode(text, add_special_tokens=False).ids if token not in self._left_out]

    def knows(self, text: str) -> bool:
        """Whether every word of it has tokens."""
        found = self.rules.encode(text, add_special_tokens=False).ids
        return bool(found) and not self._left_out.intersection(found)

    def is_cut(self, text: str) -> bool:
        """Whether it is too long for the context."""
        return len(self.ids(text)) > self._room

    @property
    def _room(self) -> int:
        return self.context - 1 - (self.start is not None)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids int64 [n, context]."""
        rows = torch.full((len(texts), self.context), self.end)
        first = [] if self.start is None else [self.start]
        for row, text in zip(rows, texts, strict=True):
            tokens = first + self.ids(text)[: self._room]
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return rows

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json``, and what transformers wants to know beside it."""
        words = type(self.rules.model).__name__ == "WordLevel"
        told: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast" if words else "CLIPTokenizer"}
        told |= {"model_max_length": self.context, "bos_token": None if self.start is None else START, "eos_token": END}
        told |= {"pad_token": END, "unk_token": UNKNOWN if words else END}
        write_atomic(folder / FILE, self.rules.to_str(pretty=True))
        write_atomic(folder / "tokenizer_config.json", json.dumps(told, indent=1))


def library(argument: str) -> Any:
    """The library tokenizers.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("tokenizers") is None:
        raise InputError(argument, "texts, without the library tokenizers", "it to be installed: pip install 'stillroom[clip]'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and processes that read images ahead do not go together
    import tokenizers

    return tokenizers


def read_tokenizer(folder: Path, context: int, argument: str) -> Tokenizer | None:
    """The tokenizer in a folder; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    whole, vocabulary, merges = folder / FILE, folder / "vocab.json", folder / "merges.txt"
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        return None
    made = library(argument)
    try:
        if whole.is_file():
            return Tokenizer(made.Tokenizer.from_file(str(whole)), context, argument=argument)
        rules = _like_clip(made, made.models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix=_WORD_END, unk_token=END))
        return Tokenizer(_marked(made, rules), context, argument=argument)
    except InputError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise InputError(argument, f"{folder}, whose tokenizer cannot be read ({error})", f"{FILE}, or vocab.json and merges.txt") from None


def of_words(words: Iterable[str], context: int) -> Tokenizer:
    """A token for each of some words; texts are such words with spaces between them, in any case. The end token has the largest id."""
    made = library("data")
    ids = {word: number for number, word in enumerate([*words, UNKNOWN])}
    rules = made.Tokenizer(made.models.WordLevel(ids, unk_token=UNKNOWN))
    rules.normalizer, rules.pre_tokenizer = made.normalizers.Lowercase(), made.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(_marked(made, rules), context)


def learnt(texts: Iterable[str], vocabulary: int, context: int) -> Tokenizer:
    """Byte pairs learnt from texts, in the form of CLIP's own vocabulary: any text of any script has tokens. Small letters only.

    Args:
        texts: to learn from.
        vocabulary: tokens at most, 514 of which are single bytes, in and at the end of words, and the marks of start and end.
        context: T.

    Raises:
        InputError: the vocabulary is too small for that, or the library is not installed.
    """
    made = library("data")
    alphabet = sorted(made.pre_tokenizers.ByteLevel.alphabet())
    at_least("vocabulary", vocabulary, 2 * len(alphabet) + 3)
    # The library numbers what stands at the end of words in an order that changes from run to run: so it is given signs of its own there.
    last = {byte: chr(_PRIVATE + number) for number, byte in enumerate(alphabet)}
    rules = _like_clip(made, made.models.BPE(end_of_word_suffix=_WORD_END))

    def with_ends(text: str) -> str:
        words = rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(text))
        return " ".join(f"{word[:-1]}{last[word[-1]]}" for word, _ in words)

    plain = made.Tokenizer(made.models.BPE())
    plain.pre_tokenizer = made.pre_tokenizers.WhitespaceSplit()
    signs = [*alphabet, *last.values()]
    trainer = made.trainers.BpeTrainer(vocab_size=vocabulary - 2, initial_alphabet=signs, show_progress=False, min_frequency=2)
    plain.train_from_iterator(map(with_ends, texts), trainer)
    pairs = json.loads(plain.to_str())["model"]
    ended = str.maketrans({sign: f"{byte}{_WORD_END}" for byte, sign in last.items()})
    vocab = {token.translate(ended): number for token, number in pairs["vocab"].items()}
    merges = [tuple(part.translate(ended) for part in pair) for pair in pairs["merges"]]
    rules.model = made.models.BPE(vocab, merges, end_of_word_suffix=_WORD_END)
    return Tokenizer(_marked(made, rules), context)


def _like_clip(made: Any, model: Any) -> Rules:
    """How CLIP cuts a text into words: NFC, one space for many, small letters; letters, single digits and other signs apart."""
    rules: Rules = made.Tokenizer(model)
    spaces = made.normalizers.Replace(made.Regex(r"\s+"), " ")
    rules.normalizer = made.normalizers.Sequence([made.normalizers.NFC(), spaces, made.normalizers.Lowercase()])
    words = made.pre_tokenizers.Split(made.Regex(_WORDS), behavior="removed", invert=True)
    rules.pre_tokenizer = made.pre_tokenizers.Sequence([words, made.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return rules


def _marked(made: Any, rules: Rules) -> Rules:
    """With the marks of start and end, behind all other tokens where it has none yet, which the library itself puts around a text."""
    rules.add_special_tokens([START, END])
    marks = [(mark, rules.token_to_id(mark)) for mark in (START, END)]
    rules.post_processor = made.processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=marks)
    return rules
