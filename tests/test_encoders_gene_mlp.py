"""`gene-mlp`: genes chosen on training sections, standardised, and absent where a panel lacks them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import encoder_cases as cases
from triglyph.encoders import registry
from triglyph.encoders.base import Expression
from triglyph.errors import ContractError, GeneError


def training():
    return [cases.expression(20, seed=s) for s in (1, 2, 3)]


def fitted(**options):
    torch.manual_seed(0)
    encoder = registry.build("gene-mlp", **{"genes": 12, **options})
    encoder.fit(training())
    return encoder.eval()


def without(e: Expression, genes) -> Expression:
    measured = e.measured & ~np.isin(e.symbols, list(genes))
    return Expression(e.counts, e.symbols, e.ensembl_ids, measured)


def test_values_are_standardised_log1p_cp10k_of_the_most_variable_genes():
    encoder = fitted()
    counts = np.concatenate([e.counts.toarray() for e in training()])
    logs = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    best = np.argsort(-logs.var(0))[:12]
    assert set(encoder.vocabulary.symbols) == {cases.GENES[i] for i in best}
    columns = [cases.GENES.index(s) for s in encoder.vocabulary.symbols]
    expected = ((logs - logs.mean(0)) / logs.std(0))[:, columns]
    found = np.concatenate([encoder.prepare(e)["values"].numpy() for e in training()])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-5)


def test_unmeasured_genes_are_the_training_mean_and_the_rest_is_scaled():
    encoder = fitted()
    gone = encoder.vocabulary.symbols[:3]
    inputs = encoder.prepare(without(cases.expression(), gone))
    assert (inputs["values"][:, :3] == 0).all()
    assert (inputs["values"][:, 3:] != 0).any(0).all()
    assert (inputs["scale"] == 12 / 9).all()
    assert encoder.matched(without(cases.expression(), gone)) == (9, 12)


def test_zero_counts_and_unmeasured_genes_are_different_inputs():
    encoder = fitted()
    gene = encoder.vocabulary.symbols[0]
    e = cases.expression()
    counts = e.counts.tolil()
    counts[:, cases.GENES.index(gene)] = 0
    zero = Expression(sp.csr_matrix(counts), e.symbols, e.ensembl_ids, e.measured)
    assert not torch.allclose(cases.pooled(encoder, zero), cases.pooled(encoder, without(e, [gene])), atol=1e-3)


def test_the_smaller_a_panel_the_more_each_gene_counts():
    encoder = fitted()
    inputs = encoder.prepare(without(cases.expression(), encoder.vocabulary.symbols[:3]))
    by_hand = encoder.rest(encoder.first(inputs["values"] * 12 / 9))
    torch.testing.assert_close(encoder.encode(inputs).pooled, by_hand)


def test_another_panel_does_not_shift_the_values():
    # A panel of eleven genes of the vocabulary: totals are a third of the whole, and say nothing of depth.
    encoder = fitted()
    e = cases.expression(300, seed=9)
    panel = without(e, set(e.symbols) - set(encoder.vocabulary.symbols[1:]))
    assert panel.counts[:, panel.measured].sum() < 0.7 * e.counts.sum()
    whole, part = encoder.prepare(e)["values"].numpy()[:, 1:], encoder.prepare(panel)["values"].numpy()[:, 1:]
    assert abs(whole.mean() - part.mean()) < 0.1
    assert np.corrcoef(whole.ravel(), part.ravel())[0, 1] > 0.95


def test_depth_is_no_feature_unless_asked_for():
    e = cases.expression()
    deeper = Expression(e.counts * 5, e.symbols, e.ensembl_ids, e.measured)
    plain, with_depth = fitted(), fitted(library_size=True)
    torch.testing.assert_close(cases.pooled(plain, deeper), cases.pooled(plain, e), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cases.pooled(with_depth, deeper), cases.pooled(with_depth, e), atol=1e-2)


def test_only_training_sections_decide():
    encoder = fitted()
    before = encoder.assets()
    cases.pooled(encoder, cases.expression(50, seed=77))
    assert encoder.assets() == before
    other = registry.build("gene-mlp", genes=12)
    other.fit(iter(reversed(training())))
    np.testing.assert_allclose(other.assets()["mean"], before["mean"], rtol=1e-10)
    assert other.assets()["vocabulary"] == before["vocabulary"]


def test_input_dropout_is_what_a_smaller_panel_looks_like():
    encoder = fitted(input_dropout=0.25, dropout=0.0).train()
    inputs = encoder.prepare(cases.expression(1))
    torch.manual_seed(0)
    kept = encoder.input_dropout(torch.ones(1, 12)) > 0
    torch.manual_seed(0)
    dropped = encoder.encode(inputs).pooled
    by_hand = torch.where(kept, inputs["values"] / 0.75, torch.zeros(()))
    torch.testing.assert_close(dropped, encoder.rest(encoder.first(by_hand)))


def test_fewer_genes_than_asked_for_make_a_smaller_layer():
    encoder = registry.build("gene-mlp", genes=500)
    encoder.fit(training())
    assert encoder.first.in_features == 40
    assert encoder.card.parameters == sum(p.numel() for p in encoder.parameters())
    again = registry.build("gene-mlp", **encoder.options())
    again.load_assets(encoder.assets())
    again.load_state_dict(encoder.state_dict(), strict=True)


def test_sections_without_a_common_gene_cannot_be_fitted():
    a, b = training()[:2]
    renamed = Expression(b.counts, tuple(f"X{s}" for s in b.symbols), ("",) * 40, b.measured)
    with pytest.raises(GeneError, match="measured in all 2"):
        registry.build("gene-mlp").fit([a, renamed])
    constant = Expression(sp.csr_matrix(np.ones((4, 40), int)), a.symbols, a.ensembl_ids, a.measured)
    with pytest.raises(GeneError, match="no gene that the training sections share varies"):
        registry.build("gene-mlp").fit([constant])
    with pytest.raises(ContractError, match="reads an Expression"):
        fitted().prepare([1, 2])
