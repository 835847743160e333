"""Components of expression fitted in the trial: equal to a plain computation, and blind to test sections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from bench_fakes import FakeSection, trial
from triglyph.bench.contracts import Trial
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.parts import Part
from triglyph.bench.representations import ACROSS, CENTRED, LABELLED, REPRESENTATIONS, averaging, expression_components
from triglyph.errors import ContractError, GeneError

NAMES = list(REPRESENTATIONS)


def near(xy, k):
    """(n, k) the nearest, the location itself first."""
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def jittered(made, seed=0):
    """Places without equal distances."""
    for i, section in enumerate((*made.train, *made.test)):
        section.centres_um = section.centres_um + np.random.default_rng([seed, i]).normal(size=section.centres_um.shape)
    return made


def by_hand(made, *, n_components, pooled=1, centred=False, beside=0, n_genes=2000):
    """The published formula, dense and in plain numpy, over all locations."""
    values = {}
    for s in (*made.train, *made.test):
        counts = s.counts.toarray().astype(float)
        counts = counts[near(s.centres_um, pooled)].mean(axis=1)
        x = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        values[s.id] = x - x.mean(axis=0) if centred else x
    train = np.vstack([values[s.id] for s in made.train])
    genes = np.argsort(-train.var(axis=0))[:n_genes]
    mean = train[:, genes].mean(axis=0)
    axes = np.linalg.svd(train[:, genes] - mean, full_matrices=False)[2][:n_components].T
    out = {k: (v[:, genes] - mean) @ axes for k, v in values.items()}
    if beside:
        places = {s.id: s.centres_um for s in (*made.train, *made.test)}
        out = {k: np.hstack([v, v[near(places[k], beside)].mean(axis=1)]) for k, v in out.items()}
    return out


@pytest.mark.parametrize(
    "options",
    [
        {"n_components": 8},
        {"n_components": 8, "n_genes": 15},
        {"n_components": 8, "beside": 9},
        {"n_components": 5, "pooled": 19, "centred": True, "n_genes": 12},
    ],
)
def test_components_equal_the_plain_formula_up_to_their_signs(options):
    made = jittered(trial())
    subject = expression_components(made, name="x", **options)
    for section in (*made.train, *made.test):
        found, present = subject.embed(section, "expression")
        expected = by_hand(made, **options)[section.id]
        assert present.all()
        signs = np.sign((found * expected).sum(axis=0))
        np.testing.assert_allclose(found * signs, expected, atol=1e-6)


def test_the_named_ones_are_the_published_three():
    made = jittered(trial(genes=70))
    shapes = {name: REPRESENTATIONS[name](made).embed(made.test[0], "expression")[0].shape for name in NAMES}
    assert shapes == dict(zip(NAMES, [(196, 50), (196, 100), (196, 10)], strict=True))
    assert {REPRESENTATIONS[n](made).role for n in NAMES} == {"baseline"}
    assert REPRESENTATIONS[NAMES[0]](made, role="method").role == "method"
    assert [REPRESENTATIONS[n](made).transductive for n in NAMES] == [(), (LABELLED,), (CENTRED, LABELLED)]


@pytest.mark.parametrize("name", NAMES)
def test_test_sections_teach_nothing_about_each_other(name):
    made = trial(test=2)
    before = REPRESENTATIONS[name](made).embed(made.test[0], "expression")[0]
    made.test[1].counts = sp.csr_matrix(made.test[1].counts.toarray()[:, ::-1] * 7)
    np.testing.assert_array_equal(REPRESENTATIONS[name](made).embed(made.test[0], "expression")[0], before)
    made.train[1].counts = sp.csr_matrix(made.train[1].counts.toarray()[:, ::-1] * 7)
    assert np.abs(REPRESENTATIONS[name](made).embed(made.test[0], "expression")[0] - before).max() > 1e-3


def test_training_sections_are_declared_so_that_they_cannot_be_tested():
    made = trial()
    subject = REPRESENTATIONS[NAMES[0]](made)
    assert tuple(subject.source.training_sections) == tuple(s.id for s in made.train)
    assert {r.level for r in LinearProbe(modality="expression").run(subject, made)} == {"patient"}
    with pytest.raises(ContractError, match="not in the trial"):
        subject.embed(FakeSection("elsewhere", "p"), "expression")


def test_locations_without_counts_or_label_have_no_features_and_are_nobodys_neighbours():
    made = jittered(trial(unlabelled=tuple(range(0, 196, 3))))
    dense = made.test[0].counts.toarray()
    dense[10] = 0
    made.test[0].counts = sp.csr_matrix(dense)
    labelled = made.test[0].labels != ""
    options = {"name": "x", "n_components": 4, "pooled": 5}
    for locations, there in (("all", np.ones(196, bool)), ("labelled", labelled)):
        found, present = expression_components(made, locations=locations, **options).embed(made.test[0], "expression")
        np.testing.assert_array_equal(present, there & (np.arange(196) != 10))
        assert np.isnan(found[~present]).all()
        assert np.isfinite(found[present]).all()
    dense[0] = 1000  # unlabelled
    one = expression_components(made, locations="labelled", **options).embed(made.test[0], "expression")[0]
    made.test[0].counts = sp.csr_matrix(dense)
    two = expression_components(made, locations="labelled", **options).embed(made.test[0], "expression")[0]
    np.testing.assert_array_equal(one, two)


def test_neighbours_are_by_physical_distance_or_by_the_place_on_the_array():
    class Placed(FakeSection):
        """An array whose rows lie twice as far apart as it says, and turned."""

        @property
        def table(self):
            table = super().table
            table.obs["array_col"], table.obs["array_row"] = np.divmod(np.arange(196), 14)
            return table

    made = trial()
    sections = {s.id: Placed(s.id, s.patient) for s in (*made.train, *made.test)}
    made = replace(made, train=tuple(sections[s.id] for s in made.train), test=tuple(sections[s.id] for s in made.test))
    for s in sections.values():
        s.centres_um = s.centres_um * [1.0, 3.0]
    um, array = (
        expression_components(made, name="x", n_components=4, beside=9, places=p).embed(made.test[0], "expression")[0]
        for p in ("um", "array")
    )
    np.testing.assert_array_equal(um[:, :4], array[:, :4])
    middle = 7 * 14 + 7
    around = [middle + 14 * i + j for i in (-1, 0, 1) for j in (-1, 0, 1)]
    np.testing.assert_allclose(array[middle, 4:], array[around, :4].mean(axis=0))
    assert np.abs(um[middle, 4:] - array[middle, 4:]).max() > 1e-3
    with pytest.raises(ContractError, match="no place on the array"):
        expression_components(trial(), name="x", n_components=4, beside=9, places="array")


def test_averages_are_over_all_locations_where_there_are_fewer_than_asked_for():
    xy = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    np.testing.assert_allclose(averaging(xy, 9).toarray(), np.full((3, 3), 1 / 3))
    np.testing.assert_allclose(averaging(xy, 2).toarray(), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]])
    assert averaging(np.zeros((0, 2)), 3).shape == (0, 0)


def test_parts_of_a_section_are_fitted_on_the_training_part_alone():
    whole, other = FakeSection("s", "p"), FakeSection("t", "q")
    rows = np.arange(98)
    made = Trial(
        train=(Part(whole, np.arange(98, 196), training=True), other),
        test=(Part(whole, rows),),
        patients={"s": "p", "t": "q"},
        split="made",
    )
    subject = REPRESENTATIONS[NAMES[0]](made)
    values, present = subject.embed(made.test[0], "expression")
    assert values.shape == (98, len(values[0]))
    assert present.all()
    assert REPRESENTATIONS[NAMES[1]](made).transductive == (LABELLED, ACROSS)
    assert {r.level for r in LinearProbe(modality="expression").run(subject, made)} == {"within-section"}
    axes = subject.embed(other, "expression")[0]
    counts = whole.counts.toarray()
    counts[rows] = counts[rows, ::-1] * 3
    whole.counts = sp.csr_matrix(counts)
    np.testing.assert_array_equal(REPRESENTATIONS[NAMES[0]](made).embed(other, "expression")[0], axes)


def test_too_little_to_fit_on_is_refused():
    made = trial(unlabelled=tuple(range(196)))
    with pytest.raises(ContractError, match="counts and a label"):
        REPRESENTATIONS[NAMES[0]](made)
    made = trial()
    made.test[0].measured = np.zeros(40, bool)
    with pytest.raises(GeneError, match="no measured gene in common"):
        REPRESENTATIONS[NAMES[0]](made)
