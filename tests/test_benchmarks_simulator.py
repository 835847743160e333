"""The figures that real and simulated tissue are compared by, on tables whose answer is known."""

from __future__ import annotations

import gzip
import importlib
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from support import SHARED, needs_shared
from triglyph.metrics.expression import without_depth

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "simulator"))
slices = importlib.import_module("slices")
figure_labels = importlib.import_module("figure_labels")
figure_image = importlib.import_module("figure_image")
figure_genes = importlib.import_module("figure_genes")
calibration = importlib.import_module("calibration")
validity = importlib.import_module("validity")
validity_methods = importlib.import_module("validity_methods")
nuclear = importlib.import_module("nuclear")
scale_error = importlib.import_module("scale_error")

SIDE, GENES = 12, 60


def grid(side=SIDE, pitch_um=100.0):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * pitch_um


def world(patients=4, sections=2, *, offset=0.0, depth=40.0, seed=0):
    """Slices in which a smooth state moves half of the genes, and says where cancer is; `offset` is the patients'."""
    rng = np.random.default_rng(seed)
    loading = np.where(np.arange(GENES) % 2, rng.normal(size=GENES), 0.0)
    base = rng.uniform(-1, 1, GENES)
    out = []
    for p in range(patients):
        shift, phase = offset * rng.normal(size=GENES), rng.uniform(0, 6, 2)
        for s in range(sections):
            xy = grid()
            state = np.sin(xy[:, 0] / 300 + phase[0]) + np.cos(xy[:, 1] / 300 + phase[1])
            rate = np.exp(base + shift + 0.6 * state[:, None] * loading) * depth
            table = ad.AnnData(
                sp.csr_matrix(rng.poisson(rate)),
                obs=pd.DataFrame(
                    {"label": np.where(state > 0, "invasive cancer", "connective tissue")},
                    index=[f"{i}" for i in range(len(xy))],
                ),
                var=pd.DataFrame(index=[f"GENE{g}" if g < 40 else f"SIM{g:04d}" for g in range(GENES)]),
                obsm={"spatial": xy},
            )
            features = np.column_stack([state, rng.normal(size=(len(xy), 7))])
            out.append(slices.Slice.of_table(table, id=f"P{p}-S{s}", patient=f"P{p}", features=features))
    return out


def found(rows, model, metric, split=None):
    values = [r.value for r in rows if (r.model, r.metric) == (model, metric) and split in (None, r.split)]
    assert values
    return float(np.mean(values))


# ---- slices


def test_a_neighbour_mean_holds_the_location_itself():
    xy = np.array([[0.0, 0], [1, 0], [5, 0], [6, 0]])
    values = np.array([[0.0], [2], [10], [30]])
    assert slices.neighbour_mean(values, xy, 2)[:, 0].tolist() == [1, 1, 20, 20]
    assert slices.neighbour_mean(sp.csr_matrix(values), xy, 1) == pytest.approx(values)


@pytest.mark.parametrize(("patients", "n_folds"), [(3, 3), (8, 8), (11, 8)])
def test_every_patient_is_tested_once_and_never_beside_itself(patients, n_folds):
    made = world(patients, 1)
    folds = slices.people_folds(made, folds=8)
    assert len(folds) == n_folds
    for train, test in folds:
        assert not {s.patient for s in train} & {s.patient for s in test}
    assert sorted(s.id for _, test in folds for s in test) == sorted(s.id for s in made)


def test_a_gene_that_was_not_measured_is_no_gene_of_the_slice():
    table = ad.AnnData(sp.csr_matrix(np.array([[1, 0], [2, 0]])), obsm={"spatial": np.zeros((2, 2))})
    table.var_names = ["A", "B"]
    table.var["measured"] = [True, False]
    made = slices.Slice.of_table(table, id="s", patient="p")
    assert (made.symbols, made.block, made.labels.tolist(), made.core) == (("A",), "p", ["", ""], None)


# ---- labels


def test_classes_that_genes_follow_are_found_in_other_patients_and_random_ones_are_not():
    made = world()
    rows = figure_labels.labels(made, clusterings=2)
    assert {r.model for r in rows} == {"PCA-50", "PCA-50 + 9 neighbours", figure_labels.POOLED}
    assert {r.group for r in rows} == {"P0-S0", "P1-S0", "P2-S0", "P3-S0"}
    assert found(rows, "PCA-50", "cancer AUROC") > 0.95
    assert found(rows, figure_labels.POOLED, "balanced accuracy") > 0.75
    for s in made:
        s.labels = np.random.default_rng(0).permutation(s.labels)
    rows = figure_labels.labels(made, clusterings=2)
    assert abs(found(rows, "PCA-50", "cancer AUROC") - 0.5) < 0.1
    assert abs(found(rows, "PCA-50", "ARI")) < 0.05


def test_a_class_with_few_locations_or_unseen_in_training_is_not_judged():
    truth = np.array(["a"] * 20 + ["b"] * 20 + ["rare"] * 3 + ["new"] * 12)
    guess = np.where(truth == "b", "a", truth)
    assert figure_labels._balanced(truth, guess, {"a", "b", "rare"}) == 0.5
    assert np.isnan(figure_labels._balanced(truth, guess, {"rare"}))


# ---- image


def test_features_that_know_the_state_predict_within_and_across_and_noise_does_not():
    made = world(3)
    rows = figure_image.image(made, turned=False, n_genes=20)
    for split in (figure_image.WITHIN, figure_image.ONE, figure_image.MANY):
        assert found(rows, "stain and texture", "pearson", split) > 0.3
        assert {r.level for r in rows if r.split == split} == {
            "within-patient" if split == figure_image.WITHIN else "patient"
        }
    assert found(rows, "position", "pearson", figure_image.WITHIN) > 0.3
    for s in made:
        s.features = np.random.default_rng(0).normal(size=s.features.shape)
    noise = figure_image.image(made, turned=False, n_genes=20)
    assert abs(found(noise, "stain and texture", "pearson", figure_image.ONE)) < 0.05


def test_a_turned_section_is_laid_back_onto_its_neighbour():
    fixed, moving = world(1, 2)
    for seed, s in enumerate((fixed, moving)):  # three smooth stains of the same tissue, with the sections' own noise
        x, y = s.xy_um.T / 250
        s.features = np.random.default_rng(seed).normal(0, 0.3, (s.n, 8))
        s.features[:, [0, 1, 6]] += np.stack([np.sin(x) + y / 3, np.cos(y + x), np.sin(y - x / 2)], axis=1)
    turn = np.radians(57)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    moving.xy_um = moving.xy_um @ matrix + [4000, -900]
    off = np.linalg.norm(figure_image.aligned(moving, fixed) - fixed.xy_um, axis=1)
    assert np.median(off) < 50  # half of the pitch


# ---- genes


def test_the_offset_share_is_that_of_the_patients():
    none, much = (
        figure_genes.genes(world(offset=o), panel=[f"GENE{i}" for i in range(20)], n_targets=15) for o in (0.0, 1.0)
    )
    assert found(none, "ridge", "offset share") < 0.1
    assert found(much, "ridge", "offset share") > 0.6
    assert found(much, "training mean", "offset share") > 0.6


def test_a_core_gene_that_equals_a_target_is_found_by_min_mae():
    made = world(3, 1)
    for s in made:
        s.counts = sp.hstack([s.counts, s.counts[:, [1]]]).tocsr()
        s.symbols = (*s.symbols, "COPY")
    fold = figure_genes.Fold(made[:2], made[2:], ["GENE1", "GENE2", "GENE3"], ["COPY"])
    rows = figure_genes.judge(fold, "Min-MAE", figure_genes.min_mae(fold))
    assert found(rows, "Min-MAE", "mse") == 0.0
    assert found(rows, "Min-MAE", "spearman, pooled") == pytest.approx(1.0)


def test_targets_come_from_the_training_patients_and_are_never_core():
    made = world(3, 1)
    core = figure_genes.core_panel(made, panel=None, seed=0)
    assert all(not figure_genes.FILLER.fullmatch(g) for g in core)
    assert core == figure_genes.core_panel(made, panel=None, seed=0)
    common = slices.common_genes(made)
    chosen = figure_genes.choose_targets(made[:2], common, core, 10)
    made[2].counts = made[2].counts * 0
    assert figure_genes.choose_targets(made[:2], common, core, 10) == chosen
    assert not set(core) & set(chosen)


def test_a_core_panel_that_sections_name_is_the_core():
    made = world(2, 1)
    for s in made:
        s.core = ("GENE3", "GENE9")
    assert figure_genes.core_panel(made, panel=None) == ["GENE3", "GENE9"]


def test_the_ceiling_is_near_what_the_true_rates_reach_and_above_ridge():
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(0, 0.6, (2500, 40)))
    rate = rate / rate.sum(axis=1, keepdims=True) * rng.uniform(400, 800, (2500, 1))
    made = slices.Slice(
        "s", "p", "p", sp.csr_matrix(rng.poisson(rate)), tuple(f"G{i}" for i in range(40)),
        rng.uniform(0, 5000, (2500, 2)), np.full(2500, ""),
    )  # fmt: skip
    targets = made.symbols[:10]
    truth = without_depth(np.log(rate[:, :10] / rate.sum(axis=1, keepdims=True)), made.totals)
    target = figure_genes.composition(made.of(targets).toarray(), made.totals)
    known = np.mean([pd.Series(truth[:, i]).corr(pd.Series(target[:, i]), method="spearman") for i in range(10)])
    ceiling = figure_genes.ceiling(made, targets)
    assert ceiling[figure_genes.CEILING] == pytest.approx(known, abs=0.02)


# ---- tables


def test_a_mean_is_over_patients_however_many_sections_each_has():
    rows = [
        slices.row("labels", "m", "ARI", v, group=g, patient=p, split="x")
        for v, g, p in ((0.0, "a1", "a"), (0.0, "a2", "a"), (0.0, "a3", "a"), (1.0, "b1", "b"), (np.nan, "b2", "b"))
    ]
    assert calibration.summary(rows)["labels", "x", "m", "ARI"] == 0.5
    assert "0.500" in calibration.show({"mine": rows})


def test_figures_that_a_cohort_lacks_the_data_for_are_left_out():
    made = world(3, 1)
    for s in made:
        s.features, s.labels = None, np.full(s.n, "")
    assert {r.task for r in calibration.calibrate(made, panel=[f"GENE{i}" for i in range(20)])} == {"genes"}


# ---- validity


def test_a_cohort_ranks_methods_as_itself_and_against_its_reverse():
    def rows(values):
        return [
            slices.row("image", f"m{i}", "pearson", v, group="g", patient="p", split="x") for i, v in enumerate(values)
        ]

    values = [0.1, 0.5, 0.2, 0.9]
    for other, expected in ((values, 1.0), ([-v for v in values], -1.0)):
        both = validity.agreement(rows(values), rows(other))
        ranks = validity.correlations(both)
        assert ranks["spearman"].tolist() == pytest.approx([expected])
        assert ranks["kendall"].tolist() == pytest.approx([expected])
        assert ranks["methods"].tolist() == [4]
    text = validity.markdown(both, ranks)
    assert "| image | x | pearson | 4 | -1.00 | -1.00 |" in text
    assert text.index("m0") < text.index("m2") < text.index("m1") < text.index("m3")


def test_a_method_that_one_cohort_lacks_is_in_no_ranking():
    one = [slices.row("image", m, "pearson", 0.1, group="g", patient="p", split="x") for m in "abc"]
    assert len(validity.agreement(one, one[:2])) == 2


def test_every_plain_method_runs_on_every_task():
    made = world(3)
    for s in made:
        s.features = np.random.default_rng(1).normal(size=(s.n, 52)) + s.features[:, :1]
    rows = figure_image.image(made, baselines=validity_methods.IMAGE, turned=False, n_genes=5, max_pairs=1, folds=2)
    assert {r.model for r in rows} == {*validity_methods.IMAGE, "position"}
    rows = validity_methods.cancer(made, folds=2)
    assert {r.model for r in rows} == set(validity_methods.CANCER_METHODS)
    assert all(r.value is not None and 0 <= r.value <= 1 for r in rows)
    fold = figure_genes.Fold(made[:2], made[2:3], [f"GENE{i}" for i in range(30)], [f"GENE{i}" for i in range(30, 40)])
    for predict in validity_methods.GENES.values():
        assert all(np.isfinite(p).all() for p in predict(fold).values())
    for task, methods in (("image", validity_methods.IMAGE), ("genes", validity_methods.GENES)):
        assert len(methods) >= 8, task
    assert len(validity_methods.CANCER_METHODS) >= 8


# ---- scale


def nuclei(radius, pitch, *, stretch=1.0, px=160, strength=1.0):
    """A pink window with dark ellipses of half axes `radius` and `radius * stretch` every `pitch` px."""
    y, x = np.mgrid[:px, :px]
    inside = ((x % pitch - pitch / 2) / stretch) ** 2 + (y % pitch - pitch / 2) ** 2 <= radius**2
    density = np.where(inside[..., None], [0.9, 1.3, 0.5], [0.1, 0.35, 0.2]) * strength
    density = density + np.random.default_rng(0).normal(0, 0.01, density.shape)
    return (255 * np.exp(-np.maximum(density, 0))).astype(np.uint8)


def measured(window):
    return nuclear.nuclear_features(window, nuclear.Stain.of([window]))


N_Q = len(nuclear.QUANTILES)
AREA, ECCENTRICITY, SPACING = (slice(2 + i * N_Q, 2 + (i + 1) * N_Q) for i in range(3))


def test_nuclei_drawn_twice_as_large_have_four_times_the_area_and_lie_twice_as_far():
    small, large = measured(nuclei(4, 20)), measured(nuclei(8, 40))
    assert np.expm1([small[0], large[0]]) == pytest.approx([64, 16])
    assert large[AREA] - small[AREA] == pytest.approx(np.full(N_Q, np.log(4)), abs=0.1)
    assert np.exp(small[AREA]) == pytest.approx(np.full(N_Q, np.pi * 16), rel=0.15)
    assert np.exp([small[SPACING], large[SPACING]]) == pytest.approx(np.repeat([[20.0], [40.0]], N_Q, 1), rel=0.02)
    energy = slice(-len(nuclear.SIGMAS_PX), None)
    at = np.log(nuclear.SIGMAS_PX)
    assert (large[energy] - small[energy]) @ at > 0.2
    assert measured(nuclei(4, 40, stretch=2))[ECCENTRICITY] == pytest.approx(np.full(N_Q, np.sqrt(0.75)), abs=0.05)


def test_a_stronger_stain_changes_nothing_once_the_section_is_known():
    weak, strong = (measured(nuclei(5, 32, strength=s)) for s in (0.7, 1.4))
    assert strong == pytest.approx(weak, abs=0.1)


def test_a_window_without_nuclei_or_of_nothing_else_has_features():
    stain = nuclear.Stain.of([nuclei(4, 20)])
    for window in (np.full((160, 160, 3), 250, np.uint8), np.full((160, 160, 3), (60, 20, 120), np.uint8)):
        found = nuclear.nuclear_features(window, stain)
        assert found.shape == (nuclear.DIM,)
        assert np.isfinite(found).all()


def test_energies_are_those_of_laplacians_of_gaussians():
    from scipy.ndimage import gaussian_laplace

    seen = np.random.default_rng(0).normal(size=(64, 64))
    taper = np.hanning(64)[:, None] * np.hanning(64)[None, :]
    tapered = (seen - seen.mean()) * taper
    for sigma, found in list(zip(nuclear.SIGMAS_PX, nuclear._energies(seen), strict=True))[2:]:
        response = sigma**2 * gaussian_laplace(tapered, sigma, mode="wrap", truncate=8)
        assert found == pytest.approx((response**2).sum() / (taper**2).sum(), rel=0.01)


class Slide:
    """A section whose image says how large a window was asked for."""

    def __init__(self, mpp):
        self.mpp, self.centres_um, self.asked = mpp, np.zeros((6, 2)), set()

    def image(self):
        return self

    def close(self):
        pass

    def read_many(self, centres, size_um, out_px):
        self.asked.add(size_um)
        return ((i, np.full((out_px, out_px, 3), i, np.uint8)) for i in range(len(centres)))


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.8])
def test_a_careless_window_has_as_many_pixels_as_the_right_one_would_at_half_a_micrometre(mpp):
    right, careless = Slide(mpp), Slide(mpp)
    assert len(scale_error.read(right, careless=False, every=2)) == 3
    scale_error.read(careless, careless=True)
    assert right.asked == {scale_error.WINDOW_UM}
    assert [size / mpp for size in careless.asked] == [scale_error.WINDOW_UM / scale_error.CLAIMED]
    assert (careless.asked == right.asked) == (mpp == scale_error.CLAIMED)


def test_a_probe_finds_what_other_patients_teach_and_not_what_only_the_patient_could():
    made = world(5, 1)
    for s in made:
        s.expression = lambda s=s: (s.counts,)
    own = scale_error.probe(made, [s.features[::2, :2] for s in made], every=2)
    assert min(own["cancer AUROC"]) > 0.95
    assert np.mean(own["expression, Pearson"]) > 0.3
    # The state stands in a column of each patient's own: constant, and so unlearnt, in everybody else.
    private = [np.eye(5)[p] * s.features[:, :1] for p, s in enumerate(made)]
    found = scale_error.probe(made, private)
    assert found["cancer AUROC"] == pytest.approx([0.5] * 5)


def test_differences_are_of_patients_however_many_sections_each_has():
    text = scale_error.difference([1.0, 0.5, 0.9], [0.5, 0.5, 0.8], ["a", "a", "b"])
    assert "difference +0.175 [+0.100, +0.250]" in text
    assert "better in 2/2" in text
    assert "difference +0.000 [+0.000, +0.000]" in scale_error.difference([0.7, 0.8], [0.7, 0.8], ["a", "b"])


@pytest.mark.slow
@needs_shared
def test_cancer_is_found_on_real_tissue_as_published():
    made = []
    for name in ("A1", "B1", "C1", "D1"):
        folder = SHARED / "her2st"
        with gzip.open(folder / "counts" / f"{name}.tsv.gz", "rt") as stream:
            counts = pd.read_csv(stream, sep="\t", index_col=0)
        table = pd.read_csv(folder / "labels" / f"{name}_labeled_coordinates.tsv", sep="\t").dropna(subset=["x", "y"])
        keys = [f"{round(x)}x{round(y)}" for x, y in zip(table["x"], table["y"], strict=True)]
        label = pd.Series(table["label"].to_numpy(), index=keys).replace("undetermined", "")
        label = label[~label.index.duplicated()].reindex(counts.index).fillna("")
        xy = np.array([[float(v) for v in i.split("x")] for i in counts.index])
        made.append(
            slices.Slice(
                name,
                name[0],
                name[0],
                sp.csr_matrix(counts.to_numpy(dtype=float)),
                tuple(counts.columns),
                xy,
                label.to_numpy(dtype=str),
            )
        )
    rows = figure_labels.labels(made, clusterings=1)
    for model in ("PCA-50", "PCA-50 + 9 neighbours", figure_labels.POOLED):
        published = calibration.PUBLISHED["labels", "patients left out", model, "cancer AUROC"]
        assert found(rows, model, "cancer AUROC") == pytest.approx(published, abs=0.005)
