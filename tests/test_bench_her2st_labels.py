"""The published figure of tissue classes from expression, on her2st as `triglyph read` reads it, patients left out."""

from __future__ import annotations

import numpy as np
import pytest

from support import SHARED, needs_shared
from triglyph.bench.contracts import Trial
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.representations import REPRESENTATIONS

SECTIONS = ["A1", "B1", "C1", "D1"]
CANCER = {"cancer": ("invasive cancer", "cancer in situ")}
METRICS = {"auroc@cancer": LinearProbe, "balanced-accuracy": LinearProbe, "ari": Clustering}
PROTOCOLS = {
    LinearProbe: LinearProbe(variant="her2st", modality="expression", min_locations=10, groups=CANCER, n_boot=0),
    Clustering: Clustering(modality="expression", min_locations=10, resolutions=(), n_boot=0),
}


@pytest.fixture(scope="module")
def trials(request):
    """One trial for each patient; the cohort is kept between runs, which `read` finds and does not read again."""
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import patient_folds
    from triglyph.workflows.read import read

    folder = request.config.cache.mkdir("her2st-labelled-1") / "cohort"
    assert not read([SHARED / "her2st"], out=folder, platform="st", only=SECTIONS).failed
    cohort = Cohort.open(folder)
    split = patient_folds(cohort.patients, name="patients-left-out")
    return {fold.test[0]: Trial.of(cohort, split, fold=fold.name) for fold in split.folds}


def judged(trials, name, **options):
    """Metric -> its value in each section."""
    found = {metric: {} for metric in METRICS}
    for section, trial in trials.items():
        subject = REPRESENTATIONS[name](trial, **options)
        rows = [row for protocol in PROTOCOLS.values() for row in protocol.run(subject, trial)]
        assert {r.level for r in rows} == {"patient"}
        for row in rows:
            if row.metric in METRICS and row.aggregation == "per-section" and row.group == section:
                found[row.metric][section] = row.value
    return found


@needs_shared
@pytest.mark.parametrize(
    ("name", "auroc", "accuracy", "ari"),
    [
        (
            "expression-pca-50",
            [0.831, 0.780, 0.981, 0.730, 0.834],
            [0.555, 0.473, 0.482, 0.606, 0.660],
            [0.230, 0.133, 0.260, 0.194, 0.332],
        ),
        (
            "expression-pca-50+9-neighbours",
            [0.847, 0.811, 0.995, 0.739, 0.841],
            [0.593, 0.458, 0.503, 0.656, 0.760],
            [0.260, 0.188, 0.297, 0.182, 0.373],
        ),
        (
            "expression-19-pooled-pca-10",
            [0.849, 0.907, 0.982, 0.590, 0.918],
            [0.565, 0.576, 0.542, 0.571, 0.571],
            [0.224, 0.213, 0.340, -0.039, 0.383],
        ),
    ],
)
def test_tissue_classes_from_expression_give_the_reference_figures(trials, name, auroc, accuracy, ari):
    found = judged(trials, name, places="array")
    for metric, expected in zip(METRICS, (auroc, accuracy, ari), strict=True):
        values = [found[metric][s] for s in SECTIONS]
        assert np.mean(values) == pytest.approx(expected[0], abs=0.003), metric
        assert values == pytest.approx(expected[1:], abs=0.01), metric


@needs_shared
def test_places_in_um_change_the_neighbours_and_so_the_figures_but_not_components_alone(trials):
    # Spots lie up to half a pitch off the array's lattice, and a lattice's distances tie.
    same = judged(trials, "expression-pca-50", places="um")
    assert np.mean(list(same["auroc@cancer"].values())) == pytest.approx(0.831, abs=0.003)
    found = judged(trials, "expression-pca-50+9-neighbours", places="um")
    means = [np.mean(list(found[m].values())) for m in METRICS]
    assert means == pytest.approx([0.862, 0.601, 0.263], abs=0.005)
