"""Genes are found by identity, whatever the order, version or panel."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from triglyph.errors import GeneError
from triglyph.genes.ids import Gene, GeneVocabulary, ensembl_stem, genes_of


@pytest.mark.parametrize(
    ("given_id", "stem"),
    [
        ("ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000141510.18", "ENSG00000141510"),
        (" ENSMUSG00000059552.3 ", "ENSMUSG00000059552"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378"),
        ("TP53", ""),
        ("", ""),
        ("ENST00000141510", ""),
        ("ENSG0000014151", ""),
    ],
)
def test_versions_of_ensembl_ids_are_dropped_and_nothing_else_is_one(given_id, stem):
    assert ensembl_stem(given_id) == stem


def test_ids_decide_before_symbols():
    vocabulary = GeneVocabulary.of([Gene("OLD", "ENSG00000000001"), Gene("B", "ENSG00000000002"), Gene("C")])
    found = vocabulary.select(["NEW", "B", "C", "OLD"], ["ENSG00000000001.4", "", "ENSG00000000009", "ENSG00000000077"])
    # NEW is OLD renamed; B has no id here; C has none in the vocabulary; OLD is another gene by now.
    np.testing.assert_array_equal(found.matrix.toarray(), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert found.measured.all()


def test_symbols_of_another_species_are_other_genes():
    assert not GeneVocabulary.of([Gene("TP53")]).select(["Trp53", "Tp53"], ["", ""]).measured.any()


def test_columns_of_one_gene_add_up():
    vocabulary = GeneVocabulary.of([Gene("A", "ENSG00000000001")])
    found = vocabulary.select(["A", "A-2"], ["ENSG00000000001", "ENSG00000000001.2"])
    assert (sp.csr_matrix([[2, 3]]) @ found.matrix).toarray() == 5


def test_unmeasured_columns_are_not_the_gene():
    vocabulary = GeneVocabulary.of([Gene("A"), Gene("B")])
    found = vocabulary.select(["A", "B"], ["", ""], np.array([False, True]))
    assert found.measured.tolist() == [False, True]
    assert found.matrix.toarray().tolist() == [[0, 0], [0, 1]]


def test_names_and_ids_must_be_as_many():
    with pytest.raises(GeneError, match="2 symbols but 1"):
        genes_of(["A", "B"], [""])


@given(st.data())
def test_selection_equals_looking_genes_up_one_by_one(data):
    symbols = [f"G{i}" for i in range(12)]
    panel = data.draw(st.lists(st.sampled_from(symbols), unique=True))
    wanted = data.draw(st.lists(st.sampled_from(symbols), unique=True))
    measured = np.array(data.draw(st.lists(st.booleans(), min_size=len(panel), max_size=len(panel))), dtype=bool)
    counts = np.arange(3 * len(panel)).reshape(3, len(panel))
    matrix, there = GeneVocabulary.of([Gene(s) for s in wanted]).select(panel, [""] * len(panel), measured)
    found = sp.csr_matrix(counts) @ matrix
    for j, gene in enumerate(wanted):
        known = gene in panel and bool(measured[panel.index(gene)])
        assert there[j] == known
        expected = counts[:, panel.index(gene)] if known else 0
        assert (found.toarray()[:, j] == expected).all()
