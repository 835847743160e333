"""WordPiece vocabularies: learnt from captions, or read as published, and used without side effects.

Learning is deterministic: each distinct caption counts once, in sorted order, on one thread. Texts are tokenised one
by one, so that no thread pool of the tokeniser survives into forked loader workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triglyph.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPiece:
    """Texts to token ids.

    Parameters
    ----------
    vocabulary
        Tokens in the order of their ids; must hold the five special tokens of BERT.
    lowercase
        Fold case and strip accents, as uncased models do.
    max_tokens
        Longest sequence, `[CLS]` and `[SEP]` included; the rest is cut off.
    """

    def __init__(self, vocabulary: Sequence[str], *, lowercase: bool, max_tokens: int) -> None:
        self.vocabulary = tuple(vocabulary)
        if absent := [t for t in SPECIAL if t not in self.vocabulary]:
            raise WeightsError(f"the vocabulary has no {', '.join(absent)}", mend="use a WordPiece vocabulary of BERT")
        self.pad_id = self.vocabulary.index(PAD)
        self._tokenizer = _tokenizer(self.vocabulary, lowercase=lowercase)
        self._tokenizer.enable_truncation(max_tokens)

    @classmethod
    def read(cls, path: Path, *, lowercase: bool, max_tokens: int) -> WordPiece:
        """From a `vocab.txt` of one token a line."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise WeightsError(f"not text ({error})", where=path, mend="fetch the file again") from None
        tokens = [line.rstrip("\r") for line in lines]
        while tokens and not tokens[-1]:
            tokens.pop()
        return cls(tokens, lowercase=lowercase, max_tokens=max_tokens)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (n, length) and mask (n, length), padded to the longest text."""
        import torch

        rows = [self._tokenizer.encode(text).ids for text in texts]
        length = max((len(r) for r in rows), default=1)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), length), dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask


def learn_vocabulary(texts: Iterable[str], *, size: int, lowercase: bool) -> list[str]:
    """A WordPiece vocabulary of at most `size` tokens; the same for the same set of texts, whatever their order."""
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import WordPiece as Model

    corpus = sorted({text for text in texts if text.strip()})
    tokenizer = Tokenizer(Model(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _reading(lowercase=lowercase)
    # The trainer numbers characters in the order of a hash table that differs between processes, and breaks ties by
    # these numbers. Given as special tokens, they are numbered here.
    fixed = [*SPECIAL, *_characters(tokenizer, corpus)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(fixed)), min_frequency=2, special_tokens=fixed, show_progress=False
    )
    with _one_thread():
        tokenizer.train_from_iterator(corpus, trainer)
    found: dict[str, int] = tokenizer.get_vocab()
    return sorted(found, key=found.__getitem__)[:size]


def _characters(tokenizer: Any, corpus: Iterable[str]) -> list[str]:
    """Characters that begin a word, and those that continue one (`##x`), sorted."""
    begin, rest = set(), set()
    for text in corpus:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            begin.add(word[0])
            rest.update(word[1:])
    return [*sorted(begin | rest), *(f"##{c}" for c in sorted(rest))]


def _tokenizer(vocabulary: Sequence[str], *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece as Model
    from tokenizers.processors import BertProcessing

    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(Model(ids, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _reading(lowercase=lowercase)
    tokenizer.post_processor = BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    return tokenizer


def _reading(*, lowercase: bool) -> tuple[Any, Any]:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return BertNormalizer(lowercase=lowercase), BertPreTokenizer()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
