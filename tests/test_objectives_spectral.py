"""Spectral starts: the axes within sections, as a dense decomposition gives them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from triglyph.errors import ContractError
from triglyph.objectives import spectral
from triglyph.objectives.spectral import Sampled, contextual_axes, gene_shares, within_section_axes


def made(n: int = 60, tokens: int = 25, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists whose genes follow a hidden axis; packed ids, lengths, section of each list."""
    rng = np.random.default_rng(seed)
    axis, lists = rng.normal(size=tokens - 2), []
    for _ in range(n):
        strength = rng.normal() * axis + 0.5 * rng.normal(size=tokens - 2)
        lists.append(2 + np.argsort(-strength)[: rng.integers(5, 15)])
    return np.concatenate(lists), np.array([len(x) for x in lists]), rng.integers(0, 3, n)


def shares(ids: np.ndarray, lengths: np.ndarray, n_tokens: int = 25) -> sp.csr_matrix:
    """Of lists whose genes weigh alike."""
    return gene_shares(torch.from_numpy(ids), torch.from_numpy(lengths), n_tokens, weights=torch.ones(len(ids)))


def unplaced(x: sp.csr_matrix, section: np.ndarray) -> Sampled:
    return Sampled(x, section, np.full((len(section), 2), np.nan))


def test_a_gene_has_as_large_a_share_as_it_weighs() -> None:
    ids, lengths = torch.tensor([3, 5, 4, 5]), torch.tensor([3, 1])
    x = gene_shares(ids, lengths, 6, weights=torch.tensor([1.0, 0.5, 0.25, 1.0])).toarray()
    np.testing.assert_allclose(x, [[0, 0, 0, 1 / 3, 0.25 / 3, 0.5 / 3], [0, 0, 0, 0, 0, 1]], rtol=1e-6)


def test_each_gene_of_a_location_has_an_equal_share() -> None:
    ids, lengths, _ = made()
    x = shares(ids, lengths).toarray()
    np.testing.assert_allclose(x.sum(axis=1), 1.0, rtol=1e-5)
    assert set(np.flatnonzero(x[0])) == set(ids[: lengths[0]])
    np.testing.assert_allclose(x[0, ids[: lengths[0]]], 1.0 / lengths[0], rtol=1e-6)


def test_a_location_without_genes_is_an_empty_row() -> None:
    x = shares(np.array([3, 4, 5]), np.array([2, 0, 1]), 6)
    assert x.toarray()[1].sum() == 0
    assert x.shape == (3, 6)
    assert shares(np.zeros(0, dtype=np.int64), np.array([0, 0]), 6).nnz == 0


def test_axes_are_those_of_the_centred_dense_matrix() -> None:
    ids, lengths, section = made()
    x = shares(ids, lengths)
    found = within_section_axes([unplaced(x[:20], section[:20]), unplaced(x[20:], section[20:])], dim=4, seed=0)
    dense = x.toarray().astype(np.float64)
    mean = dense.mean(axis=0)
    occurs = mean > 0
    centred = dense.copy()
    for s in range(3):
        centred[section == s] -= dense[section == s].mean(axis=0)
    scaled = centred[:, occurs] / np.sqrt(mean[occurs])
    _, _, axes = np.linalg.svd(scaled, full_matrices=False)
    expected = (axes[:4] / np.sqrt(mean[occurs])).T
    expected /= np.sqrt((expected**2).mean())
    sign = np.sign((expected * found[occurs]).sum(axis=0))
    np.testing.assert_allclose(found[occurs], expected * sign, atol=1e-3)
    assert not found[~occurs].any()


def test_what_sets_sections_apart_is_no_axis() -> None:
    rng = np.random.default_rng(0)
    section, lengths = rng.integers(0, 2, 200), np.full(200, 6)
    ids = np.concatenate([2 + rng.permutation(18)[:6] for _ in section])
    extra = np.where(section == 0, 20, 21)
    # Every list of a section begins with a gene of its own, which tells the section and nothing else.
    packed = np.concatenate(
        [np.append(e, x) for e, x in zip(extra, np.split(ids, np.cumsum(lengths)[:-1]), strict=True)]
    )
    plain = within_section_axes([unplaced(shares(packed, lengths + 1), np.zeros(200, dtype=int))], dim=1, seed=0)
    within = within_section_axes([unplaced(shares(packed, lengths + 1), section)], dim=1, seed=0)
    assert abs(within[20, 0] - within[21, 0]) < 0.5 * abs(plain[20, 0] - plain[21, 0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_locations_fill_few_axes(n: int) -> None:
    ids, lengths, section = made(n)
    found = within_section_axes([unplaced(shares(ids, lengths), section * 0)], dim=8, seed=0)
    assert found.shape == (25, 8)
    assert np.isfinite(found).all()
    assert not found[:, max(n - 1, 0) :].any()


@pytest.mark.parametrize(
    "lists",
    [
        [[2, 3], [4, 5, 6]],  # two sections of one location each
        [[2, 3, 4]] * 6,  # two sections of three alike
        [[2, 3], [4, 5, 6]] * 3,  # three alike in each of two sections
    ],
)
def test_without_variation_within_sections_there_is_no_axis(lists: list[list[int]]) -> None:
    x = shares(np.concatenate(lists), np.array([len(one) for one in lists]), 9)
    found = within_section_axes([unplaced(x, np.arange(len(lists)) % 2)], dim=4, seed=0)
    assert found.shape == (9, 4)
    assert not found.any()


def test_axes_along_which_nothing_varies_are_zero_and_the_others_are_as_ever() -> None:
    # Lists of the first section are of two kinds, which is one axis; those of the second are alike.
    lists = [[2, 3, 4], [5, 6], [2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]]
    x = shares(np.concatenate(lists), np.array([len(one) for one in lists]), 9)
    found = within_section_axes([unplaced(x, np.array([0, 0, 0, 1, 1, 1]))], dim=4, seed=0)
    assert (np.abs(found).max(axis=0) > 0).tolist() == [True, False, False, False]
    assert np.sqrt((found[2:, 0] ** 2).mean()) == pytest.approx(1.0, rel=1e-5)


def test_it_is_the_same_every_time() -> None:
    ids, lengths, section = made()
    a, b = (within_section_axes([unplaced(shares(ids, lengths), section)], dim=4, seed=1) for _ in range(2))
    np.testing.assert_array_equal(a, b)


# ---- axes along which neighbours are told


def lattice(side: int = 8) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.stack([x.ravel(), y.ravel()], axis=1) * 100.0


def placed(seed: int = 0, *, offset: int = 0) -> Sampled:
    """A section of 64 locations on a lattice."""
    ids, lengths, _ = made(64, seed=seed)
    return Sampled(shares(ids, lengths), np.full(64, offset), lattice())


def test_contextual_axes_are_those_of_the_ridge_regression_of_neighbours_on_the_location() -> None:
    pieces = [placed(0), placed(1, offset=1)]
    found = contextual_axes(pieces, dim=3, ridge=0.7)
    dense = np.concatenate([p.shares.toarray().astype(np.float64) for p in pieces])
    mean = dense.mean(axis=0)
    occurs = mean > 0
    scaled = dense[:, occurs] / np.sqrt(mean[occurs])
    centred = np.concatenate([part - part.mean(axis=0) for part in (scaled[:64], scaled[64:])])
    gap = np.hypot(*(lattice()[:, None] - lattice()[None]).transpose(2, 0, 1))
    near = (gap < 150) & (gap > 0)
    around = np.concatenate([near @ part / near.sum(axis=1, keepdims=True) for part in (centred[:64], centred[64:])])
    penalty = 0.7 * (centred**2).sum() / dense.shape[1]
    gram = centred.T @ centred + penalty * np.eye(centred.shape[1])
    fit = np.linalg.solve(gram, centred.T @ around)
    # What is told, as it is spread: the best three axes of the penalised fit, whose inner products these are.
    values, vectors = np.linalg.eigh(fit.T @ gram @ fit)
    told = centred @ fit @ vectors[:, ::-1][:, :3]
    ours = np.concatenate([p.shares @ found for p in pieces])
    ours = np.concatenate([part - part.mean(axis=0) for part in (ours[:64], ours[64:])])
    factor = np.sqrt((ours**2).sum() / (told**2).sum())
    sign = np.sign((ours * told).sum(axis=0))
    np.testing.assert_allclose(ours, factor * told * sign, atol=1e-4 * np.abs(ours).max())
    assert np.sqrt((found[occurs] ** 2).mean()) == pytest.approx(1.0, rel=1e-5)
    assert values[-1] > 0


def test_noise_that_neighbours_do_not_share_is_no_contextual_axis() -> None:
    rng = np.random.default_rng(0)
    places = lattice(20)
    left, coin = places[:, 0] < 1000, rng.random(400) < 0.5
    # Genes 2 and 3 say on which side a location lies, 4 and 5 are the toss of a coin and weigh three times as much.
    ids = np.stack([np.where(coin, 4, 5), np.where(left, 2, 3)], axis=1)
    weights = torch.tensor([3.0, 1.0]).repeat(400)
    lengths = torch.full((400,), 2)
    x = gene_shares(torch.from_numpy(ids.ravel()), lengths, 6, weights=weights)
    own = within_section_axes([unplaced(x, np.zeros(400, dtype=int))], dim=1, seed=0)[:, 0]
    told = contextual_axes([Sampled(x, np.zeros(400, dtype=int), places)], dim=1)[:, 0]
    assert abs(own[4] - own[5]) > 10 * abs(own[2] - own[3])
    assert abs(told[2] - told[3]) > 10 * abs(told[4] - told[5])


def test_contextual_axes_do_not_hang_on_the_order_or_on_locations_without_genes() -> None:
    one = placed()
    order = np.random.default_rng(0).permutation(64)
    other = Sampled(one.shares[order], one.section, one.centres_um[order])
    np.testing.assert_allclose(contextual_axes([one], dim=3), contextual_axes([other], dim=3), atol=1e-4)
    split = [Sampled(one.shares[part], one.section[part], one.centres_um[part]) for part in (slice(20), slice(20, 64))]
    np.testing.assert_allclose(contextual_axes([one], dim=3), contextual_axes(split, dim=3), atol=1e-4)
    empty = sp.csr_matrix((1, 25), dtype=one.shares.dtype)
    more = Sampled(
        sp.vstack([one.shares, empty], format="csr"),
        np.zeros(65, dtype=int),
        np.vstack([one.centres_um, [[350.0, 350.0]]]),
    )
    found = contextual_axes([more], dim=3)
    # It counts in the mean frequency of genes, which scales all alike, and nowhere else.
    expected = contextual_axes([one], dim=3)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_sections_without_places_or_with_few_locations_change_no_contextual_axis() -> None:
    # Lists of one section again, so that genes have the same mean, by which they are divided.
    one = placed()
    bare = Sampled(one.shares, one.section + 1, np.full((64, 2), np.nan))
    parts = [Sampled(one.shares[k : k + 16], one.section[:16] + 2 + k, lattice(4)) for k in range(0, 64, 16)]
    np.testing.assert_allclose(contextual_axes([one, bare, *parts], dim=3), contextual_axes([one], dim=3), atol=1e-5)
    with pytest.raises(ContractError, match="36 sampled locations"):
        contextual_axes([bare, *parts], dim=3)


def test_contextual_axes_need_neighbours_and_not_too_many_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = placed()
    for places in (np.full((64, 2), np.nan), lattice()):
        lone = Sampled(one.shares, np.arange(64) if np.isfinite(places).all() else one.section, places)
        with pytest.raises(ContractError, match=r"no training section has 36[\s\S]*spectral"):
            contextual_axes([lone], dim=3)
    monkeypatch.setattr(spectral, "MOST_TOKENS", 20)
    with pytest.raises(ContractError, match=r"25 tokens[\s\S]*fewer `genes`"):
        contextual_axes([one], dim=3)


def test_where_lists_are_alike_nothing_is_told() -> None:
    x = shares(np.tile([2, 3, 4], 36), np.full(36, 3), 9)
    found = contextual_axes([Sampled(x, np.zeros(36, dtype=int), lattice(6))], dim=4)
    assert found.shape == (9, 4)
    assert not found.any()
