"""Rank tokens equal the published definition, and do not depend on the order of a section's columns."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from triglyph.errors import GeneError
from triglyph.genes.tokens import RankVocabulary

IDS = [f"ENSG{i:011d}" for i in range(1, 21)]
TOKENS = {"<pad>": 0, "<mask>": 1} | {g: i + 2 for i, g in enumerate(IDS[:15])}


def vocabulary(seed: int = 0) -> RankVocabulary:
    medians = np.random.default_rng(seed).gamma(2, 2, 20) + 0.1
    return RankVocabulary(TOKENS, dict(zip(IDS, medians, strict=True)), {"GENE_A": IDS[0]})


def brute(counts, ids, measured, v, max_tokens):
    """The definition, gene by gene."""
    rows = []
    for row in counts:
        total = sum(c for c, i, m in zip(row, ids, measured, strict=True) if m and i)
        per_gene: dict[str, int] = {}
        for c, i, m in zip(row, ids, measured, strict=True):
            if m and i in v.tokens:
                per_gene[i] = per_gene.get(i, 0) + int(c)
        value = {i: c / total * 1e4 / v.medians[i] for i, c in per_gene.items() if c}
        rows.append([v.tokens[i] for i in sorted(value, key=lambda i: (-value[i], v.tokens[i]))][:max_tokens])
    return rows


def unpadded(tokens):
    return [row[:n].tolist() for row, n in zip(tokens.ids, tokens.lengths, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25))
def test_tokens_equal_the_definition(seed, max_tokens):
    rng = np.random.default_rng(seed)
    columns = rng.permutation(IDS + IDS[:3] + ["", ""])[: rng.integers(1, 25)].tolist()
    counts = rng.poisson(rng.gamma(0.6, 3.0, len(columns)), (5, len(columns)))
    measured = rng.random(len(columns)) > 0.2
    v = vocabulary(seed)
    ids = [f"{i}.{seed % 9 + 1}" if i else "" for i in columns]
    found = v.encode(sp.csr_matrix(counts), ["?"] * len(ids), ids, measured, max_tokens=max_tokens)
    assert unpadded(found) == brute(counts, columns, measured, v, max_tokens)
    assert found.ids.shape[1] == max(1, found.lengths.max())
    for row, n in zip(found.ids, found.lengths, strict=True):
        assert (row[n:] == 0).all()
        assert (row[:n] > 1).all()


def test_ties_are_broken_by_token_id_whatever_the_order_of_columns():
    # Times 1 / median, not all of these ratios would be 1.
    medians = [49.0, 98.0, 103.0, 107.0, 161.0, 187.0]
    flat = RankVocabulary({g: 20 - i for i, g in enumerate(IDS[:6])}, dict(zip(IDS[:6], medians, strict=True)))
    counts = np.array([medians], dtype=int)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(6)
        found = flat.encode(
            sp.csr_matrix(counts[:, order]), ["?"] * 6, [IDS[i] for i in order], np.ones(6, bool), max_tokens=9
        )
        assert found.ids[0].tolist() == [15, 16, 17, 18, 19, 20]


def test_depth_does_not_change_the_order():
    v = vocabulary()
    counts = np.random.default_rng(0).poisson(4, (3, 15))
    measured = np.ones(15, bool)
    a = v.encode(sp.csr_matrix(counts), ["?"] * 15, IDS[:15], measured, max_tokens=20)
    b = v.encode(sp.csr_matrix(counts * 7), ["?"] * 15, IDS[:15], measured, max_tokens=20)
    assert unpadded(a) == unpadded(b)


def test_n_counts_is_the_total_over_genes_with_an_id():
    v = RankVocabulary({IDS[0]: 5}, {IDS[0]: 2.0})
    # The second gene has an id but no token: it counts. The third has no id, the fourth was not measured.
    counts = sp.csr_matrix([[3, 9, 50, 70]])
    values, tokens = v.values(counts, list("abcd"), [IDS[0], IDS[19], "", IDS[5]], np.array([1, 1, 1, 0], bool))
    assert tokens.tolist() == [5]
    np.testing.assert_allclose(values.toarray(), [[3 / 12 * 1e4 / 2]])


def test_empty_locations_have_no_token():
    v = vocabulary()
    found = v.encode(sp.csr_matrix((2, 20), dtype=int), ["?"] * 20, IDS, np.ones(20, bool), max_tokens=8)
    assert found.lengths.tolist() == [0, 0]
    assert found.ids.tolist() == [[0], [0]]


def test_genes_without_an_id_are_found_by_symbol():
    v = vocabulary()
    found = v.encode(sp.csr_matrix([[4, 4]]), ["GENE_A", "GENE_B"], ["", ""], np.ones(2, bool), max_tokens=8)
    assert unpadded(found) == [[2]]
    assert v.known(["GENE_A", "GENE_B"], ["", IDS[3]], np.ones(2, bool)) == 2


def test_dictionaries_are_read_from_json_and_from_pickle_alike(tmp_path):
    v = vocabulary()
    medians = {k: np.float64(m) for k, m in v.medians.items()}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(TOKENS))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(medians))
    (tmp_path / "t.json").write_text(json.dumps(TOKENS))
    (tmp_path / "m.json").write_text(json.dumps(v.medians))
    a = RankVocabulary.read(tmp_path / "t.pkl", tmp_path / "m.pkl")
    b = RankVocabulary.read(tmp_path / "t.json", tmp_path / "m.json")
    assert a.to_json() == b.to_json() == RankVocabulary.from_json(json.loads(json.dumps(a.to_json()))).to_json()
    assert "<pad>" not in a.tokens


@pytest.mark.parametrize(
    ("tokens", "medians", "said"),
    [
        ({"A": 2}, {"B": 1.0}, "share no gene"),
        ({"A": 2}, {"A": 0.0}, "not positive: A"),
        ({"A": 2}, {"A": float("nan")}, "not positive"),
        ({"A": 0}, {"A": 1.0}, "positive and distinct"),
        ({"A": 2, "B": 2}, {"A": 1.0, "B": 1.0}, "positive and distinct"),
    ],
)
def test_dictionaries_that_do_not_fit_are_refused(tokens, medians, said):
    with pytest.raises(GeneError, match=said):
        RankVocabulary(tokens, medians)
