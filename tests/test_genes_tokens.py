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
from triglyph.genes import ranking
from triglyph.genes.medians import recomputed_vocabulary
from triglyph.genes.ranking import top_genes
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
        value = {i: c / total * 1e4 / v.scales[i] for i, c in per_gene.items() if c}
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


@pytest.mark.parametrize("rare", [0.0, 1.0])
def test_thousands_of_locations_are_tokenised_as_one_by_one_whatever_the_counts(rare, monkeypatch):
    """Both ways of ranking. Large counts, rows of more genes than 16 bits can number, empty rows, stored zeros,
    unsorted and repeated entries, equal values of different counts; and rows together equal rows alone."""
    monkeypatch.setattr(ranking, "RARE", rare)
    rng = np.random.default_rng(3)
    k = 90_000
    scale = rng.choice([0.5, 1.0, 2.0, 3.0, 7.0], k)
    rows = [rng.choice(k, m, replace=False) for m in (0, 3, 80_000, 60_000, 900, 900, 40, 30_000)]
    data = [
        np.concatenate([rng.integers(0, 9, len(r) - len(r) // 3), rng.integers(0, 10**9, len(r) // 3)]) for r in rows
    ]
    indptr = np.cumsum([0, *map(len, rows)])
    counts = sp.csr_matrix((np.concatenate(data), np.concatenate(rows), indptr), shape=(len(rows), k))
    column_of = rng.permutation(k)
    column_of[rng.choice(k, 1000, replace=False)] = -1
    genes, lengths = top_genes(counts, column_of, scale, limit=60_000)
    for i, (columns, values) in enumerate(zip(rows, data, strict=True)):
        there = (values > 0) & (column_of[columns] >= 0)
        gene = column_of[columns][there]
        expected = gene[np.lexsort((gene, -(values[there] / scale[gene])))][:60_000]
        assert lengths[i] == len(expected)
        assert (genes[i, : lengths[i]] == expected).all()
        assert (genes[i, lengths[i] :] == -1).all()
    monkeypatch.setattr(ranking, "ENTRIES", 1)  # every row alone
    assert (top_genes(counts, column_of, scale, limit=60_000)[0] == genes).all()
    split = sp.csr_matrix((np.repeat(counts.data, 2), np.repeat(counts.indices, 2), 2 * indptr), shape=counts.shape)
    assert (
        top_genes(split, column_of, scale, limit=60_000)[0] == top_genes(counts * 2, column_of, scale, limit=60_000)[0]
    ).all()
    for bad, said in (
        (np.array([[0.5]]), "not whole"),
        (np.array([[-1]]), "-1 is no count"),
        (np.array([[2**41]]), "is no count"),
        (np.array([[np.nan]]), "not whole"),
    ):
        with pytest.raises(GeneError, match=said):
            top_genes(sp.csr_matrix(bad), np.zeros(1, int), np.ones(1), limit=3)


def sections(rng, *, named=True):
    """Two sections with other columns: a repeated id, an unmeasured gene, one without an id that the other names."""
    found = []
    for columns in (IDS[:12] + IDS[:2], IDS[5:18][::-1]):
        counts = sp.csr_matrix(rng.poisson(rng.gamma(0.6, 3.0, len(columns)), (30, len(columns))))
        measured = np.arange(len(columns)) != 7
        ids = [f"{i}.{rng.integers(1, 9)}" for i in columns]
        ids[3] = "" if columns[3] == IDS[3] else ids[3]
        found.append((counts, [f"S{i}" for i in columns], ids if named else [""] * len(columns), measured))
    return found


@pytest.mark.parametrize("max_values", [1, 40, 10**6])
def test_recomputed_medians_are_those_of_all_nonzero_normalised_values(max_values):
    given = sections(np.random.default_rng(5))
    known = {IDS[i] for i in range(18)} - {IDS[3]}  # whose symbol no section names
    values: dict[str, list[float]] = {}
    for counts, symbols, _, measured in given:
        for row in counts.toarray():
            per_gene: dict[str, int] = {}
            for symbol, c, m in zip(symbols, row, measured, strict=True):
                if m and symbol[1:] in known:
                    per_gene[symbol[1:]] = per_gene.get(symbol[1:], 0) + int(c)
            for name, c in per_gene.items():
                if c:
                    values.setdefault(name, []).append(c / sum(per_gene.values()) * 1e4)
    v = recomputed_vocabulary(given, max_values=max_values)
    assert v.scales == pytest.approx({i: np.median(x) for i, x in values.items()}, rel=1e-12)
    assert v.tokens == {i: k + 2 for k, i in enumerate(sorted(values))}
    turned = [(c[::-1], s, i, m) for c, s, i, m in given[::-1]]
    assert recomputed_vocabulary(turned, max_values=max_values).to_json() == v.to_json()


def test_a_recomputed_vocabulary_keeps_the_commonest_genes_and_goes_by_symbol_where_nobody_has_ids():
    rng = np.random.default_rng(6)
    given = sections(rng, named=False)
    v = recomputed_vocabulary(given, max_genes=5)
    seen = {s: 0 for _, symbols, _, _ in given for s in symbols}
    for counts, symbols, _, measured in given:
        for s in set(symbols):
            mine = [j for j, t in enumerate(symbols) if t == s and measured[j]]
            seen[s] += int((counts[:, mine].sum(axis=1) > 0).sum())
    assert set(v.tokens) == set(sorted(seen, key=lambda s: (-seen[s], s))[:5])
    tokens = v.encode(*given[0], max_tokens=9)
    assert tokens.lengths.max() > 0
    assert set(tokens.ids.ravel()) <= {0, *v.tokens.values()}
    with pytest.raises(GeneError, match="only once"):
        recomputed_vocabulary(iter(given))
    with pytest.raises(GeneError, match="no training section"):
        recomputed_vocabulary([])


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
    medians = {k: np.float64(m) for k, m in v.scales.items()}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(TOKENS))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(medians))
    (tmp_path / "t.json").write_text(json.dumps(TOKENS))
    (tmp_path / "m.json").write_text(json.dumps(v.scales))
    a = RankVocabulary.read(tmp_path / "t.pkl", tmp_path / "m.pkl")
    b = RankVocabulary.read(tmp_path / "t.json", tmp_path / "m.json")
    assert a.to_json() == b.to_json() == RankVocabulary.from_json(json.loads(json.dumps(a.to_json()))).to_json()
    assert "<pad>" not in a.tokens


@pytest.mark.parametrize(
    ("tokens", "scales", "said"),
    [
        ({"A": 2}, {"B": 1.0}, "share no gene"),
        ({"A": 2}, {"A": 0.0}, "not positive: A"),
        ({"A": 2}, {"A": float("nan")}, "not positive"),
        ({"A": 0}, {"A": 1.0}, "positive and distinct"),
        ({"A": 2, "B": 2}, {"A": 1.0, "B": 1.0}, "positive and distinct"),
    ],
)
def test_dictionaries_that_do_not_fit_are_refused(tokens, scales, said):
    with pytest.raises(GeneError, match=said):
        RankVocabulary(tokens, scales)
