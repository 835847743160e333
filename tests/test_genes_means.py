"""Non-zero means are exact quotients over training sections, whatever the order of anything."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from triglyph.errors import GeneError
from triglyph.genes.means import NonZero, means_vocabulary, nonzero_counts, rounded_mean
from triglyph.genes.medians import recomputed_vocabulary

IDS = [f"ENSG{i:011d}" for i in range(1, 21)]


def drawn(seed: int, *, named: bool = True):
    """Three sections of other panels: repeated columns, unmeasured genes, a column that only its symbol names."""
    rng = np.random.default_rng(seed)
    found = []
    for columns in (IDS[:12] + IDS[:2], IDS[5:18][::-1], rng.permutation(IDS)[:9].tolist()):
        counts = rng.poisson(rng.gamma(0.4, 4.0, len(columns)), (int(rng.integers(1, 30)), len(columns)))
        measured = rng.random(len(columns)) > 0.2
        ids = [f"{i}.{rng.integers(1, 9)}" if rng.random() > 0.3 else "" for i in columns]
        symbols = [f" S{i}" for i in columns]
        found.append((sp.csr_matrix(counts), symbols, ids if named else [""] * len(columns), measured))
    return found


def brute(sections) -> dict[str, NonZero]:
    """The definition, count by count."""
    known = {
        s.strip(): i.split(".")[0] for _, symbols, ids, _ in sections for s, i in zip(symbols, ids, strict=True) if i
    }
    found: dict[str, NonZero] = {}
    for counts, symbols, ids, measured in sections:
        names = [
            i.split(".")[0] or (known.get(s.strip(), "") if known else s.strip())
            for s, i in zip(symbols, ids, strict=True)
        ]
        for row in counts.toarray().tolist():
            here: dict[str, int] = {}
            for name, count, m in zip(names, row, measured, strict=True):
                if name and m:
                    here[name] = here.get(name, 0) + count
            for name, count in here.items():
                if count:
                    total, locations = found.get(name, (0, 0))
                    found[name] = NonZero(total + count, locations + 1)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_sums_and_occurrences_equal_the_definition(seed, named):
    sections = drawn(seed, named=named)
    expected = brute(sections)
    assert nonzero_counts(sections) == expected
    vocabulary = means_vocabulary(sections)
    assert vocabulary.scales == {n: float(Fraction(x.total, x.locations)) for n, x in expected.items()}
    assert vocabulary.tokens == {n: k + 2 for k, n in enumerate(sorted(expected))}
    assert min(vocabulary.scales.values()) >= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_no_order_of_sections_locations_or_columns_changes_a_bit(seed):
    sections = drawn(seed)
    rng = np.random.default_rng(seed)
    moved = []
    for k in rng.permutation(len(sections)):
        counts, symbols, ids, measured = sections[k]
        order = rng.permutation(len(ids))
        rows = rng.permutation(counts.shape[0])
        moved.append((counts[rows][:, order], [symbols[i] for i in order], [ids[i] for i in order], measured[order]))
    assert means_vocabulary(moved).to_json() == means_vocabulary(sections).to_json()


def test_a_symbol_of_two_genes_stands_for_the_same_one_whatever_is_read_first():
    named = [(sp.csr_matrix([[k + 2]]), ["A"], [IDS[i]], np.ones(1, bool)) for k, i in enumerate((5, 2))]
    nameless = (sp.csr_matrix([[9]]), ["A"], [""], np.ones(1, bool))
    expected = {IDS[5]: NonZero(2, 1), IDS[2]: NonZero(3 + 9, 2)}
    assert nonzero_counts([*named, nameless]) == nonzero_counts([nameless, *named[::-1]]) == expected


def test_one_section_or_its_halves_are_the_same():
    counts, symbols, ids, measured = drawn(1)[0]
    halves = [(counts[:3], symbols, ids, measured), (counts[3:], symbols, ids, measured)]
    assert nonzero_counts(halves) == nonzero_counts([(counts, symbols, ids, measured)])


def test_a_panel_without_a_gene_does_not_lower_its_mean():
    counts = sp.csr_matrix([[3, 1], [0, 2], [5, 0]])
    section = (counts, ["A", "B"], IDS[:2], np.array([True, True]))
    blind = (counts * 100, ["A", "B"], IDS[:2], np.array([False, True]))
    without = (counts[:, [1]], ["B"], IDS[1:2], np.array([True]))
    found = nonzero_counts([section, blind, without])
    assert found == {IDS[0]: NonZero(8, 2), IDS[1]: NonZero(3 + 300 + 3, 6)}
    assert found[IDS[0]].mean == 4


def test_sums_are_whole_numbers_whatever_counts_are_kept_in():
    # Two columns of one gene and many locations: sums leave the range of 16 bits, and of single precision.
    columns, ids = ["A", "A"], [IDS[0], IDS[0]]
    for dtype, value in ((np.uint16, 65_535), (np.int32, 2**31 - 1), (np.float32, 2**24 - 1), (np.float64, 2**31 + 1)):
        counts = sp.csr_matrix(np.full((1001, 2), value, dtype=dtype))
        found = nonzero_counts([(counts, columns, ids, np.ones(2, bool))])
        assert found == {IDS[0]: NonZero(2 * 1001 * value, 1001)}, dtype
        assert isinstance(found[IDS[0]].total, int)


def test_stored_zeros_are_no_counts():
    counts = sp.csr_matrix((np.array([0, 4, 0]), np.array([0, 0, 1]), np.array([0, 1, 2, 3])), shape=(3, 2))
    assert counts.nnz == 3
    assert nonzero_counts([(counts, ["A", "B"], IDS[:2], np.ones(2, bool))]) == {IDS[0]: NonZero(4, 1)}


def test_the_genes_kept_are_those_at_most_locations_and_the_same_as_for_medians():
    sections = drawn(7)
    found = brute(sections)
    for most in (1, 4, 99):
        vocabulary = means_vocabulary(sections, max_genes=most)
        assert set(vocabulary.tokens) == set(sorted(found, key=lambda n: (-found[n].locations, n))[:most])
        medians = recomputed_vocabulary(sections, max_genes=most)
        assert (vocabulary.tokens, vocabulary.symbols) == (medians.tokens, medians.symbols)


def test_rounding_is_half_up_and_one_for_a_gene_without_a_mean():
    # Python's and NumPy's round give 2 for 2.5.
    below = np.nextafter(2.5, 0)
    means = [0.0, float("nan"), 0.3, 0.5, 1.0, 1.4999, 1.5, below, 2.5, 3.5, 590.5, 2.0]
    assert rounded_mean(means).tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 591, 2]


def test_a_rounded_vocabulary_differs_in_its_scales_alone():
    sections = drawn(11)
    exact, rounded = means_vocabulary(sections), means_vocabulary(sections, scale="rounded_mean")
    assert rounded.tokens == exact.tokens
    assert rounded.scales == {n: float(rounded_mean(m)) for n, m in exact.scales.items()}
    assert rounded.scales != exact.scales


def test_tokens_of_equal_value_follow_their_ids_where_rounding_ties_them():
    sections = drawn(11)
    vocabulary = means_vocabulary(sections, scale="rounded_mean")
    counts, symbols, ids, measured = sections[0]
    tokens = vocabulary.encode(sections[0][0], symbols, ids, measured, max_tokens=50)
    tied = 0
    name_of = {t: n for n, t in vocabulary.tokens.items()}
    names = np.array(vocabulary.ids(symbols, ids))
    for row, found, n in zip(counts.toarray(), tokens.ids, tokens.lengths, strict=True):
        value = [row[(names == name_of[t]) & measured].sum() / vocabulary.scales[name_of[t]] for t in found[:n]]
        keys = [(-v, t) for v, t in zip(value, found[:n], strict=True)]
        assert keys == sorted(keys)
        tied += len(value) - len(set(value))
    assert tied > 5


def test_what_is_no_training_data_is_refused():
    sections = drawn(3)
    with pytest.raises(GeneError, match="only once"):
        means_vocabulary(iter(sections))
    with pytest.raises(GeneError, match="no training section"):
        means_vocabulary([])
    with pytest.raises(GeneError, match="no scale is called 'median'"):
        means_vocabulary(sections, scale="median")
    for bad, said in ((0.5, "not whole"), (-1.0, "-1 is no count")):
        with pytest.raises(GeneError, match=said):
            nonzero_counts([(sp.csr_matrix([[bad]]), ["A"], IDS[:1], np.ones(1, bool))])
    # What was not measured is not looked at, whatever stands there.
    assert nonzero_counts([(sp.csr_matrix([[0.5, 2.0]]), ["A", "B"], IDS[:2], np.array([False, True]))]) == {
        IDS[1]: NonZero(2, 1)
    }
