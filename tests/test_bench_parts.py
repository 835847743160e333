"""Within-section folds: parts of sections are judged by what they hold, and by nothing else of their section."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench_fakes import EMBEDDINGS, FakeModel, FakeSection
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.targets import Targets
from triglyph.bench.features import Depth, Position
from triglyph.bench.parts import Part, divided, embedded, whole_of
from triglyph.bench.registry import protocol
from triglyph.bench.ridge_retrieval import ridge_retrieval
from triglyph.errors import SplitError
from triglyph.tissue.split import Fold, Split


class Cohort(dict):
    def __init__(self, sections):
        super().__init__({s.id: s for s in sections})
        self.patients = {s.id: s.patient for s in sections}


@pytest.fixture
def cohort():
    return Cohort([FakeSection("a1", "a"), FakeSection("b1", "b"), FakeSection("c1", "c")])


def left_half(section):
    return tuple(f"b{i}" for i in np.flatnonzero(section.centres_um[:, 1] < 1400))


def within(cohort, **held_out):
    fold = Fold(train=("a1", "b1"), test=tuple(held_out), test_locations=held_out)
    return Split(name="halves", level="within-section", folds=(fold,))


@pytest.fixture
def trial(cohort):
    return Trial.of(cohort, within(cohort, a1=left_half(cohort["a1"]), b1=left_half(cohort["b1"])))


def test_both_sides_of_a_section_hold_each_location_once(trial, cohort):
    for train, test in zip(trial.train, trial.test, strict=True):
        assert isinstance(train, Part)
        assert whole_of(train) is whole_of(test) is cohort[test.id]
        assert sorted([*train.rows, *test.rows]) == list(range(196))
        assert train.id != test.id
        assert test.expression()[0].sum() + train.expression()[0].sum() == cohort[test.id].counts.sum()
        assert list(test.table.obs_names) == list(left_half(cohort[test.id]))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_every_protocol_judges_parts_and_says_within_section(name, trial):
    rows = protocol(name).run(Subject("fake", FakeModel()), trial)
    assert {r.level for r in rows} == {"within-section"}
    assert max(r.n for r in rows if r.group == "a1") <= len(trial.test[0].rows)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_what_a_model_gives_the_test_locations_is_all_that_counts(name, trial):
    class Spoilt(FakeModel):
        """Wrong on every training location, which a protocol without a fit never looks at."""

        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            for test in trial.test:
                if test.id == section.id and not protocol(name).card().fitted:
                    values[np.setdiff1d(np.arange(len(values)), test.rows)] = 0.0
            return values, present

    one, two = (protocol(name).run(Subject("fake", m), trial) for m in (FakeModel(), Spoilt()))
    assert one == two


def test_genes_are_chosen_on_training_locations_alone(cohort):
    held_out = left_half(cohort["a1"])
    split = within(cohort, a1=held_out)
    before = Targets(Trial.of(cohort, split), n_genes=5, min_detected=0.1).genes
    rows = Trial.of(cohort, split).test[0].rows
    counts = cohort["a1"].counts.tolil()
    counts[rows[::2], 39] = 5000
    cohort["a1"].counts = counts.tocsr()
    assert Targets(Trial.of(cohort, split), n_genes=5, min_detected=0.1).genes == before


def test_a_subject_that_is_fitted_in_the_trial_is_judged_on_the_other_part(trial):
    fitted = ridge_retrieval(Position(), trial, name="position + ridge", n_components=5)
    rows = protocol("retrieval").run(fitted, trial)
    assert {r.level for r in rows} == {"within-section"}
    values, present = fitted.embed(trial.test[0], "expression")
    assert len(values) == len(present) == len(trial.test[0].rows)


def test_features_of_a_part_are_those_of_the_whole_section_cut(trial):
    part = trial.test[0]
    for features in (Position(), Depth()):
        whole = features.features(part.whole)[0]
        np.testing.assert_array_equal(embedded(features, part, "image")[0], whole[part.rows])


def test_a_model_trained_on_the_section_is_judged_only_if_trained_on_this_fold(trial):
    model = FakeModel(trained_on=("a1", "b1"))
    with pytest.raises(SplitError, match="trained or chosen on it"):
        trial.levels(Subject("other split", model))
    with pytest.raises(SplitError, match="trained or chosen on it"):
        trial.levels(Subject("other fold", model, trained_on=trial.identity + "x"))
    same = Subject("same fold", model, trained_on=trial.identity)
    assert set(trial.levels(same).values()) == {"within-section"}
    with pytest.raises(SplitError, match="trained or chosen on it"):
        replace(trial, val=("a1",)).levels(same)


def test_what_was_computed_on_a_trial_is_not_taken_over_by_one_made_of_it(trial):
    trial.memo["targets"] = "of all genes"
    assert replace(trial, test=trial.test[:1]).memo == {}


def test_a_part_of_a_section_that_nobody_trained_on_is_of_its_patients_level(cohort):
    fold = Fold(train=("a1",), test=("c1",), test_locations={"c1": left_half(cohort["c1"])})
    trial = Trial.of(cohort, Split(name="s", level="patient", folds=(fold,)))
    assert trial.levels(Subject("fake", FakeModel())) == {"c1": "patient"}
    # The rest of its locations is on nobody's side.
    assert [s.id for s in trial.train] == ["a1"]


def test_sections_on_both_sides_without_test_locations_are_refused(cohort):
    split = Split(name="s", level="within-section", folds=(Fold(train=("a1",), test=("a1",)),))
    with pytest.raises(SplitError, match="without a word which locations"):
        Trial.of(cohort, split)


@pytest.mark.parametrize(
    ("barcodes", "said"),
    [(("b0", "nobody"), "has not"), (("b0", "b0"), "twice"), ((), "0 to test"), (range(196), "0 locations to train")],
)
def test_test_locations_that_do_not_divide_a_section_are_refused(cohort, barcodes, said):
    names = [b if isinstance(b, str) else f"b{b}" for b in barcodes]
    with pytest.raises(SplitError, match=said):
        divided(cohort["a1"], names, where="here")


def test_ceilings_of_true_domains_are_those_of_the_tested_part(cohort):
    for section in cohort.values():
        kinds = np.array([c.split()[0] for c in section.captions])
        names = sorted(set(kinds))
        table = section.table
        table.obsm["truth_domains"] = (kinds[:, None] == np.array(names)[None, :]).astype(float)
        section.__class__ = type("Known", (FakeSection,), {"table": table})
    made = Trial.of(cohort, within(cohort, a1=left_half(cohort["a1"]), b1=left_half(cohort["b1"])))
    rows = ceiling_rows(protocol("linear-probe"), made, FakeModel())
    assert {r.level for r in rows} == {"within-section"}
    assert max(r.n for r in rows if r.group == "a1") <= len(made.test[0].rows)


def test_two_locations_of_one_name_are_refused(cohort):
    section = cohort["a1"]
    table = section.table
    table.obs_names = ["b0", *table.obs_names[:-1]]
    section.__class__ = type("Twice", (FakeSection,), {"table": table})
    with pytest.raises(SplitError, match="have one barcode"):
        divided(section, ["b0"], where="here")
