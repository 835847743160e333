"""The most variable genes: equal to computing them at once, whatever the panels and the order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from triglyph.errors import GeneError
from triglyph.genes.variable import GeneMoments, library_size, log1p_cp10k

SYMBOLS = tuple(f"G{i}" for i in range(15))


def sections(seed: int = 0):
    rng = np.random.default_rng(seed)
    for n in (7, 4, 9):
        yield rng.poisson(rng.gamma(0.5, 4.0, 15), (n, 15))


def brute(arrays):
    logs = np.concatenate([np.log1p(c / np.maximum(c.sum(1, keepdims=True), 1) * 1e4) for c in arrays])
    return logs.mean(0), logs.var(0)


def add(moments, counts, symbols=SYMBOLS, measured=None):
    measured = np.ones(counts.shape[1], dtype=bool) if measured is None else measured
    moments.add(sp.csr_matrix(counts), symbols, [""] * counts.shape[1], measured)


def test_one_pass_equals_all_at_once():
    moments = GeneMoments()
    for counts in sections():
        add(moments, counts)
    found = moments.finish()
    mean, variance = brute(list(sections()))
    order = np.argsort(SYMBOLS)
    assert [g.symbol for g in found.genes] == sorted(SYMBOLS)
    np.testing.assert_allclose(found.mean, mean[order], rtol=1e-10)
    np.testing.assert_allclose(found.variance, variance[order], rtol=1e-8, atol=1e-12)
    pooled = np.concatenate(list(sections()))
    np.testing.assert_allclose(found.share, (pooled.sum(0) / pooled.sum())[order])
    np.testing.assert_allclose(found.log_library_mean, np.log1p(pooled.sum(1)).mean())
    np.testing.assert_allclose(found.log_library_std, np.log1p(pooled.sum(1)).std())


def test_neither_the_order_of_sections_nor_of_genes_matters():
    a, b = GeneMoments(), GeneMoments()
    rng = np.random.default_rng(1)
    for counts in sections():
        add(a, counts)
    for counts in reversed(list(sections())):
        order = rng.permutation(15)
        add(b, counts[:, order], [SYMBOLS[i] for i in order])
    first, second = a.finish(), b.finish()
    assert first.genes == second.genes
    np.testing.assert_allclose(first.variance, second.variance)
    assert first.most_variable(5).tolist() == second.most_variable(5).tolist()


def test_only_genes_measured_in_every_section_are_candidates():
    moments = GeneMoments()
    arrays = list(sections())
    add(moments, arrays[0])
    add(moments, arrays[1][:, :10], SYMBOLS[:10])
    measured = np.ones(15, dtype=bool)
    measured[3] = False
    add(moments, arrays[2], measured=measured)
    assert {g.symbol for g in moments.finish().genes} == set(SYMBOLS[:10]) - {"G3"}


def test_genes_that_do_not_vary_are_never_chosen():
    counts = np.full((5, 4), 3)
    counts[:, 3] = [1, 9, 2, 0, 4]
    counts[:, 2] = 0
    counts[:, 0] = 12 - counts[:, 3]
    counts[:, 1] = 100 - counts[:, 0] - counts[:, 3]
    moments = GeneMoments()
    add(moments, counts, SYMBOLS[:4])
    found = moments.finish()
    assert {found.genes[i].symbol for i in found.most_variable(10)} == {"G0", "G3"}


def test_a_tie_is_broken_by_the_name_of_the_gene():
    counts = np.tile(np.array([[1], [5]]), (1, 4))
    counts = np.concatenate([counts, 20 - counts], axis=1)
    moments = GeneMoments()
    add(moments, counts, ["D", "B", "A", "C", "H", "F", "E", "G"])
    found = moments.finish()
    assert [found.genes[i].symbol for i in found.most_variable(2)] == ["A", "B"]


def test_rows_without_counts_stay_zero():
    counts = sp.csr_matrix([[0, 0], [1, 3]])
    library = library_size(counts, np.array([True, True]))
    assert library.tolist() == [0, 4]
    np.testing.assert_allclose(log1p_cp10k(counts, library).toarray(), [[0, 0], np.log1p([2500, 7500])])


def test_nothing_in_common_is_an_error():
    moments = GeneMoments()
    with pytest.raises(GeneError, match="no training location"):
        moments.finish()
    add(moments, np.ones((2, 2), dtype=int), ["A", "B"])
    add(moments, np.ones((2, 2), dtype=int), ["C", "D"])
    with pytest.raises(GeneError, match="measured in all 2"):
        moments.finish()
