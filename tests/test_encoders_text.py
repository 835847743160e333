"""Vocabularies: learnt alike everywhere, read as published, used without threads left behind."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch

from triglyph.encoders import registry
from triglyph.encoders.bert import masked_mean
from triglyph.encoders.wordpiece import SPECIAL, WordPiece, learn_vocabulary
from triglyph.errors import WeightsError

LEARN = """
import hashlib, random
from triglyph.encoders.wordpiece import learn_vocabulary
words = random.Random(0).sample([a + b + c for a in "abcdefgh" for b in "ijklmn" for c in "opqrst"], 150)
texts = [" ".join(random.Random(i).sample(words, 9)) for i in range(400)]
random.Random({order}).shuffle(texts)
print(hashlib.sha256(" ".join(learn_vocabulary(texts, size=300, lowercase=True)).encode()).hexdigest())
"""


def test_a_vocabulary_is_the_same_in_every_process_and_order():
    found = set()
    for order, threads in ((1, "true"), (2, "false"), (3, "true")):
        env = {**os.environ, "PYTHONHASHSEED": str(order), "TOKENIZERS_PARALLELISM": threads}
        done = subprocess.run(
            [sys.executable, "-c", LEARN.format(order=order)], env=env, check=True, capture_output=True, text=True
        )
        found.add(done.stdout.strip())
    assert len(found) == 1


def test_learning_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    learn_vocabulary(["a b", "a c"], size=20, lowercase=True)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    learn_vocabulary(["a b", "a c"], size=20, lowercase=True)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_copies_of_a_caption_and_empty_ones_change_nothing():
    captions = ["lymphoid tissue", "tumour tissue", "Tumour, necrotic"]
    once = learn_vocabulary(captions, size=60, lowercase=True)
    assert once == learn_vocabulary(captions * 7 + ["", "  "], size=60, lowercase=True)
    assert tuple(once[:5]) == SPECIAL
    assert "tumour" in once or "##umour" in once
    assert len(learn_vocabulary(captions, size=12, lowercase=True)) == 12


def test_words_of_the_training_captions_become_single_tokens():
    words = ["lymphocytes", "carcinoma", "stroma"]
    texts = [f"{a} beside {b}, sample {i}" for i, a in enumerate(words) for b in words] * 2
    pieces = WordPiece(learn_vocabulary(texts, size=500, lowercase=True), lowercase=True, max_tokens=16)
    ids, mask = pieces(["Lymphocytes beside stroma", "carcinoma"])
    assert mask.sum(1).tolist() == [5, 3]
    assert ids[1, 3:].tolist() == [pieces.pad_id] * 2


def test_texts_are_cut_to_the_longest_the_model_takes():
    encoder = registry.build("bert-small", max_tokens=8)
    encoder.fit([["one two three four five six seven eight nine ten"]])
    inputs = encoder.prepare(["one two three four five six seven eight nine ten", "one"])
    assert inputs["ids"].shape == (2, 8)
    assert encoder.encode(inputs).pooled.shape == (2, 128)


def test_a_published_vocabulary_is_read_line_by_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL, "Tumour", "cells", "##s", "é"]).encode() + b"\r\n")
    pieces = WordPiece.read(path, lowercase=False, max_tokens=8)
    assert len(pieces.vocabulary) == 9
    # Cased: `tumour` is another word.
    assert pieces(["Tumour cellss é tumour"])[0][0].tolist() == [2, 5, 6, 7, 8, 1, 3]
    path.write_text("a\nb\n")
    with pytest.raises(WeightsError, match=r"no \[PAD\]"):
        WordPiece.read(path, lowercase=False, max_tokens=8)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="not text"):
        WordPiece.read(path, lowercase=False, max_tokens=8)


def test_a_mean_over_no_token_is_zero_and_ignores_what_is_masked():
    tokens = torch.randn(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    tokens[0, 2:] = float("nan")
    tokens[1] = float("inf")
    pooled = masked_mean(tokens, mask)
    torch.testing.assert_close(pooled[0], tokens[0, :2].mean(0))
    assert pooled[1].tolist() == [0, 0]
    torch.testing.assert_close(pooled[2], tokens[2].mean(0))


def test_fitting_takes_lists_of_captions_of_several_sections():
    encoder = registry.build("bert-small")
    captions = [f"tissue of kind {i % 9}" for i in range(40)]
    encoder.fit([captions[:20], captions[20:]])
    other = registry.build("bert-small")
    random.Random(0).shuffle(captions)
    other.fit(iter([captions]))
    assert encoder.assets() == other.assets()
