"""`batch-effect` moves as a planted batch effect does, while biology stays, and is never had without biology."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from bench_fakes import CLASSES, FakeModel, FakeSection, trial
from triglyph.bench.batch_effect import BatchEffect
from triglyph.bench.contracts import Subject
from triglyph.bench.hescape.clinical import attach, patient_values
from triglyph.errors import ContractError, SourceError, SplitError
from triglyph.metrics.mixing import mixing

MIXED = ("silhouette-batch", "ilisi", "batch-predictability")
BIOLOGY = ("silhouette-biology", "clisi", "label-knn@20")
SMALL = {"side": 9}


class Shifted(FakeModel):
    """The hidden state, beside it a place of the section's own in other dimensions."""

    def __init__(self, shift, *, of=lambda s: s.id, blind=False, **options):
        super().__init__(**options)
        self.shift, self.of, self.blind = shift, of, blind

    def embed(self, section, modality):
        state, present = super().embed(section, modality)
        rng = np.random.default_rng([3, zlib.crc32(section.id.encode())])
        if self.blind:
            state = rng.normal(size=state.shape)
        place = np.random.default_rng(zlib.crc32(self.of(section).encode())).normal(size=4)
        here = self.shift * place / np.linalg.norm(place) + 0.1 * rng.normal(size=(len(state), 4))
        return np.hstack([state, here]), present

    pooled = embed


@dataclass
class Tables:
    manifest: pd.DataFrame
    table: pd.DataFrame | None

    @property
    def clinical(self):
        if self.table is None:
            raise SourceError("the cohort has no clinical table")
        return self.table


def values(rows):
    return {r.metric: r.value for r in rows}


def run(model, made, **options):
    return BatchEffect(**{"scale": "none", **options}).run(Subject("fake", model), made)


def test_a_planted_batch_effect_moves_every_metric_of_mixing_and_leaves_biology():
    made = trial(test=3, **SMALL)
    # 24 neighbours, fewer than a class has locations in a section: wider, LISI would look across any island.
    none, some, much = (values(run(Shifted(shift), made, perplexity=8)) for shift in (0.0, 0.2, 5.0))
    assert none["ilisi"] > some["ilisi"] > much["ilisi"] == pytest.approx(0.0, abs=1e-9)
    assert none["silhouette-batch"] > some["silhouette-batch"] > much["silhouette-batch"]
    assert none["batch-predictability"] < some["batch-predictability"] < much["batch-predictability"] == 1.0
    assert none["batch-predictability"] == pytest.approx(1 / 3, abs=0.1)
    # On islands each class falls apart into its batches.
    assert none["graph-connectivity"] == pytest.approx(1.0, abs=0.02)
    assert much["graph-connectivity"] == pytest.approx(1 / 3, abs=0.02)
    for metric in ("clisi", "label-knn@20"):
        assert much[metric] == pytest.approx(none[metric], abs=0.06)
        assert min(none[metric], much[metric]) > 0.8


def test_an_embedding_that_forgets_everything_mixes_best_and_its_biology_says_so():
    made = trial(test=3, **SMALL)
    good, blind = (values(run(Shifted(0.3, blind=b), made)) for b in (False, True))
    assert blind["ilisi"] > good["ilisi"]
    assert blind["silhouette-batch"] > good["silhouette-batch"]
    assert blind["label-knn@20"] == pytest.approx(1 / 3, abs=0.12)
    assert blind["clisi"] < 0.4 < 0.8 < good["clisi"]


@pytest.mark.parametrize("batch", ["section", "patient"])
def test_mixing_never_stands_without_biology_and_all_come_of_one_space(batch):
    rows = run(Shifted(1.0), trial(test=2, sections_each=2, **SMALL), batch=batch)
    assert [r.metric for r in rows] == [*MIXED, "silhouette-biology", "clisi", "graph-connectivity", "label-knn@20"]
    assert {r.n for r in rows} == {4 * 81}
    assert {r.direction for r in rows if r.metric in MIXED} == {f"image->{batch}"}
    assert {r.direction for r in rows if r.metric not in MIXED} == {"image->label"}
    assert {(r.aggregation, r.group, r.level) for r in rows} == {("pooled", "all", "patient")}


def test_values_are_those_of_the_metrics_on_all_test_locations_at_once():
    made, model = trial(test=2, sections_each=2, **SMALL), Shifted(0.6)
    for section in made.test:
        section.labels[:20] = "fat"  # classes of different size weigh alike
    x = np.concatenate([model.embed(s, "image")[0] for s in made.test])
    labels = np.concatenate([s.labels for s in made.test]).astype(str)
    people = np.repeat([s.patient for s in made.test], 81)
    of = mixing(x, batches=np.repeat([s.id for s in made.test], 81), biology=labels)
    found = values(run(model, made, k=5))
    assert found["ilisi"] == pytest.approx(of.ilisi)
    assert found["silhouette-batch"] == pytest.approx(of.silhouette_batch)
    assert found["batch-predictability"] == pytest.approx(of.section_predictability)
    assert (found["clisi"], found["silhouette-biology"]) == pytest.approx((of.clisi, of.silhouette_biology))
    assert found["graph-connectivity"] == pytest.approx(of.graph_connectivity)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    right = np.zeros(len(x))
    for i in range(len(x)):
        others = np.flatnonzero(people != people[i])
        near = labels[others[np.argsort(-(unit[others] @ unit[i]))[:5]]]
        votes = {c: (near == c).sum() for c in CLASSES}
        most = [c for c in CLASSES if votes[c] == max(votes.values())]
        right[i] = (labels[i] in most) / len(most)
    assert found["label-knn@5"] == pytest.approx(np.mean([right[labels == c].mean() for c in CLASSES]))


def test_scaling_is_fitted_on_training_sections_or_declared():
    made = trial(test=2, **SMALL)
    rows = run(Shifted(1.0), made, scale="training")
    stretched = run(Stretched(1.0), made, scale="training")
    assert list(values(rows).values()) == pytest.approx(list(values(stretched).values()))
    assert values(run(Stretched(1.0), made)) != values(run(Shifted(1.0), made))
    assert all(not r.transductive for r in rows)
    corrected = run(Shifted(1.0), made, scale="per-section")
    assert all("z-scored within each test section" in r.transductive[0] for r in corrected)
    assert values(corrected)["ilisi"] > values(rows)["ilisi"] + 0.2
    with pytest.raises(ContractError, match="0 training locations"):
        run(Shifted(1.0), replace(made, train=()), scale="training")
    assert values(run(Shifted(1.0), replace(made, train=()))) == values(run(Shifted(1.0), made))


class Stretched(Shifted):
    """The same in other units."""

    def embed(self, section, modality):
        x, present = super().embed(section, modality)
        return x * np.linspace(0.01, 100, x.shape[1]) + 7.0, present

    pooled = embed


def test_one_batch_or_one_class_is_refused_in_words():
    with pytest.raises(ContractError, match="only one section, test0.0"):
        run(Shifted(1.0), trial(test=1, **SMALL))
    with pytest.raises(ContractError, match="only one patient"):
        run(Shifted(1.0), trial(test=1, sections_each=2, **SMALL), batch="patient")
    made = trial(test=2, **SMALL)
    for section in made.test:
        section.labels[:] = "gland"
    with pytest.raises(ContractError, match="only one class, gland"):
        run(Shifted(1.0), made)


def test_a_level_with_one_section_is_left_out_and_levels_never_share_a_space():
    made = trial(test=2, **SMALL)
    again = [FakeSection(f"again{i}", made.train[i].patient, **SMALL) for i in range(2)]
    patients = {**made.patients, **{s.id: s.patient for s in again}}
    rows = run(Shifted(1.0), replace(made, test=(*made.test, *again), patients=patients))
    assert {r.level for r in rows} == {"patient", "within-patient"}
    assert {r.n for r in rows} == {2 * 81}
    assert values([r for r in rows if r.level == "patient"]) == values(run(Shifted(1.0), made))
    single = run(Shifted(1.0), replace(made, test=(*made.test, again[0]), patients=patients))
    assert {r.level for r in single} == {"patient"}
    with pytest.raises(SplitError, match="trained or chosen on it"):
        run(Shifted(1.0, trained_on=(made.test[0].id,)), made)


def test_a_site_of_the_clinical_table_or_of_the_manifest_is_a_batch():
    made, model = trial(test=4, **SMALL), Shifted(3.0, of=lambda s: "ab"[int(s.patient[-1]) % 2])
    sites = {s.patient: "ab"[int(s.patient[-1]) % 2] for s in (*made.train, *made.test)}
    manifest = pd.DataFrame({"patient": made.patients})
    with pytest.raises(ContractError, match="no table of patients or sections has a column 'site'"):
        run(model, made, batch="site")
    clinical = attach(made, Tables(manifest, pd.DataFrame({"site": sites})))
    found = values(run(model, clinical, batch="site"))
    assert found["batch-predictability"] == 1.0
    assert values(run(model, made, batch="section"))["batch-predictability"] < 0.9
    manifest = manifest.assign(scanner=[sites[p] for p in manifest["patient"]])
    assert values(run(model, attach(made, Tables(manifest, None)), batch="scanner")) == found
    manifest.loc[made.test[3].id, "scanner"] = ""
    assert run(model, made, batch="scanner")[0].n == 3 * 81


def test_values_of_patients_are_read_as_text_and_must_agree():
    made = trial(test=2, sections_each=2, **SMALL)
    manifest = pd.DataFrame({"patient": made.patients})
    table = pd.DataFrame({"mutation": [1.0, 0.0, np.nan]}, index=["test-patient0", "test-patient1", "train-patient0"])
    attach(made, Tables(manifest, table))
    found = patient_values(made, "mutation", (*made.train, *made.test))
    assert found == {"test-patient0": "1", "test-patient1": "0", "train-patient0": "", "train-patient1": ""}
    attach(made, Tables(manifest.assign(mutation=[str(i) for i in range(len(manifest))]), None))
    with pytest.raises(ContractError, match="has '4' and '5'"):
        patient_values(made, "mutation", made.test)


def test_six_patients_give_the_jackknife_over_patients_and_fewer_none():
    assert all(r.ci_unit == "" for r in run(Shifted(0.5), trial(test=5, side=6)))
    made = trial(test=6, side=6)
    rows, n = run(Shifted(0.5), made), 6
    assert {(r.ci_unit, r.n_units) for r in rows} == {("patient", 6)}
    without = [
        values(run(Shifted(0.5), replace(made, test=tuple(s for s in made.test if s is not out)))) for out in made.test
    ]
    for row in rows:
        left = np.array([of[row.metric] for of in without])
        reach = student_t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
        assert row.ci_low == pytest.approx(max(0.0, row.value - reach))
        assert row.ci_high == pytest.approx(min(1.0, row.value + reach))
    control = BatchEffect(scale="none").run(Subject("fake", Shifted(0.5), role="control"), made)
    assert all(r.ci_unit == "" for r in control)


def test_the_draw_of_locations_is_seeded_and_hangs_on_nothing_else():
    made, model = trial(test=3, **SMALL), Shifted(0.5)
    rows = run(model, made, max_locations=30)
    assert {r.n for r in rows} == {90}
    assert rows == run(model, replace(made, test=made.test[::-1]), max_locations=30)
    assert values(rows) != values(run(model, made, max_locations=30, seed=1))


def test_locations_without_a_label_take_no_part():
    made = trial(test=2, unlabelled=tuple(range(40)), **SMALL)
    assert run(Shifted(0.5), made)[0].n == 2 * 41
