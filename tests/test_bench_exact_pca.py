"""Components and ridge by one eigendecomposition are those of a singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from triglyph.bench.hest.exact_pca import fit_pca_ridge
from triglyph.errors import ContractError


@pytest.mark.parametrize("n", [150, 3000])
def test_components_from_the_product_and_from_the_rows_predict_alike(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 200)) * 0.97 ** np.arange(200) @ rng.normal(size=(200, 200)) + 30
    y = x @ rng.normal(size=(200, 4)) + rng.normal(size=(n, 4))
    new = rng.normal(size=(50, 200)) * 5 + 30
    fast, slow = (fit_pca_ridge(x, y, n_components=64, rcond=r) for r in (1e-9, np.inf))
    assert fast.squared
    assert not slow.squared
    difference = np.abs(fast.predict(new, alpha=0.01) - slow.predict(new, alpha=0.01))
    assert difference.max() < 1e-6 * y.std()
    np.testing.assert_allclose(fast.lengths, slow.lengths, rtol=1e-9)


def test_components_that_the_product_cannot_tell_from_noise_come_from_the_rows():
    rng = np.random.default_rng(0)
    state = rng.normal(size=(500, 6)) * [1, 1, 1, 1, 1, 1e-6]
    x = np.column_stack([state[:, :5], state[:, 0] + state[:, 5]])
    fitted = fit_pca_ridge(x, state[:, 5:], n_components=6)
    assert not fitted.squared
    r = np.corrcoef(fitted.predict(x, alpha=1e-15)[:, 0], state[:, 5])[0, 1]
    assert r > 0.999


def test_constant_features_and_all_components_are_as_in_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 6)) + 1e3
    x[:, 2] = 7.1
    y = rng.normal(size=(80, 3)) + 4
    fitted = fit_pca_ridge(x, y)
    assert fitted.scale[2] == 1
    plain = make_pipeline(StandardScaler(), Ridge(alpha=3.0)).fit(x, y)
    np.testing.assert_allclose(fitted.predict(x, alpha=3.0), plain.predict(x), atol=1e-8)
    with pytest.raises(ContractError, match="not finite"):
        fit_pca_ridge(np.where(x == 7.1, np.nan, x), y)
    with pytest.raises(ContractError, match="1 rows"):
        fit_pca_ridge(x[:1], y[:1])
    with pytest.raises(ContractError, match="must be"):
        fit_pca_ridge(x[:5], y)
