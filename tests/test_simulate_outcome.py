"""Labels of simulated patients: composition drives them as the knobs say, and the cohort's size has no part in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import small
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.outcome import FEATURES, MUTATED, Clinic, composition, patient_record, write_clinical
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

TINY = preset("tiny")
N = 600


def world(*, subtype: float = 0.0, seed: int = 0, **labels: float) -> Simulation:
    config = preset("tiny", seed=seed)
    return config.model_copy(
        update={
            "labels": config.labels.model_copy(update=labels),
            "people": config.people.model_copy(update={"subtype": subtype}),
        }
    )


def patients(config: Simulation, number: int = N) -> pd.DataFrame:
    clinic = Clinic(config)
    return pd.DataFrame([clinic.record(patient) for patient in range(number)])


@pytest.fixture(scope="module")
def plain() -> pd.DataFrame:
    return patients(TINY)


# ---- composition


def test_the_planned_composition_is_that_of_the_tissue():
    planned, found = [], []
    for patient in range(4):
        tissue = Specimen(TINY, patient, 0).tissue
        shares = (tissue.domains * tissue.cover).sum((1, 2)) / tissue.cover.sum()
        cells = np.bincount(tissue.cells.kind, minlength=len(CELL_TYPES)) / len(tissue.cells)
        planned.append(composition(TINY, patient)[: len(DOMAINS) + len(CELL_TYPES)])
        found.append(np.concatenate([shares, cells]))
    difference = np.abs(np.array(planned) - found)
    assert difference[:, : len(DOMAINS)].mean() < 0.03
    assert difference[:, len(DOMAINS) :].mean() < 0.05
    # Not only alike on average: patients differ in the tissue as they differ in the plan.
    assert np.corrcoef((planned - np.mean(planned, 0)).ravel(), (found - np.mean(found, 0)).ravel())[0, 1] > 0.6


def test_shares_sum_to_one_and_states_are_the_subtypes(plain):
    for name, parts in (("domain", DOMAINS), ("cells", CELL_TYPES)):
        columns = [f"truth_{name}_{part.replace(' ', '_')}" for part in parts]
        np.testing.assert_allclose(plain[columns].sum(1), 1)
    assert (plain["truth_state_oestrogen_response"] == 0).all()
    apart = patients(world(subtype=2.0), 60)
    by_subtype = apart.groupby("subtype")["truth_state_oestrogen_response"].mean()
    assert by_subtype["luminal"] - by_subtype["basal"] == pytest.approx(2.0)


# ---- the mutation


def test_scores_are_standard_over_the_world(plain):
    for label in ("mutation", "hazard"):
        score = plain[f"truth_{label}_score"]
        assert abs(score.mean()) < 0.12
        assert score.std() == pytest.approx(1, abs=0.12)


def test_the_mutation_follows_the_composition_as_the_knob_says(plain):
    score, odds = plain["truth_mutation_score"], plain["truth_mutation_probability"]
    np.testing.assert_allclose(np.log(odds / (1 - odds)), np.log(MUTATED / (1 - MUTATED)) + 1.6 * score)
    assert np.corrcoef(score, plain["mutation"])[0, 1] > 0.4
    thirds = plain.groupby(pd.qcut(score, 3, labels=False))[["mutation", "truth_mutation_probability"]].mean()
    np.testing.assert_allclose(thirds["mutation"], thirds["truth_mutation_probability"], atol=0.08)
    mutated, wild = plain[plain["mutation"] == 1], plain[plain["mutation"] == 0]
    assert mutated["truth_cells_tumour"].mean() > wild["truth_cells_tumour"].mean()
    assert mutated["truth_domain_immune_infiltrate"].mean() < wild["truth_domain_immune_infiltrate"].mean()


def test_at_zero_the_mutation_has_nothing_to_do_with_the_composition(plain):
    off = patients(world(mutation=0.0))
    np.testing.assert_allclose(off["truth_mutation_probability"], MUTATED)
    assert abs(np.corrcoef(off["truth_mutation_score"], off["mutation"])[0, 1]) < 0.1
    assert off["mutation"].mean() == pytest.approx(MUTATED, abs=0.06)
    # The outcome does not feel the mutation's knob.
    assert (off["months"] == plain["months"]).all()


def test_where_subtypes_differ_the_mutation_is_more_often_luminal():
    apart = patients(world(subtype=2.0))
    share = apart.groupby("subtype")["mutation"].mean()
    assert share["luminal"] > share["basal"] + 0.05


# ---- the outcome


@pytest.mark.parametrize("knob", [0.0, 0.2, 0.35, 0.7])
@pytest.mark.parametrize("hazard", [0.0, 0.8])
def test_the_share_of_censored_patients_is_the_knob(knob, hazard):
    found = patients(world(censored=knob, hazard=hazard))
    assert 1 - found["event"].mean() == pytest.approx(knob, abs=0.06 if knob else 0)


def test_seen_deaths_are_at_the_true_time_and_censored_ones_before(plain):
    seen = plain["event"] == 1
    assert (plain["months"][seen] == plain["truth_months"][seen]).all()
    assert (plain["months"][~seen] <= plain["truth_months"][~seen]).all()
    assert (plain["months"] > 0).all()


def test_survival_follows_the_composition_and_at_zero_it_does_not(plain):
    assert spearmanr(plain["truth_hazard_score"], plain["truth_months"]).statistic < -0.35
    assert plain["truth_months"].median() == pytest.approx(70, rel=0.25)
    off = patients(world(hazard=0.0))
    assert abs(spearmanr(off["truth_hazard_score"], off["truth_months"]).statistic) < 0.1
    assert (off["mutation"] == plain["mutation"]).all()


def test_survival_is_a_half_at_the_true_median_of_any_score():
    clinic = Clinic(TINY)
    for score in (-2.0, 0.0, 1.5):
        months = np.linspace(0.5, 800, 4000)
        alive = clinic.survival(months, np.full_like(months, score))
        assert (np.diff(alive) < 0).all()
        median = months[np.argmin(np.abs(alive - 0.5))]
        assert median == pytest.approx(70 * np.exp(-0.8 * score / 1.2), rel=0.01)


def test_censoring_is_independent_of_the_composition():
    """Times of last contact, where they are seen, are uniform whatever the hazard: their share early on is the same."""
    found = patients(world(censored=0.7, hazard=0.0))
    last = found["months"][found["event"] == 0]
    score = found["truth_hazard_score"][found["event"] == 0]
    assert abs(spearmanr(last, score).statistic) < 0.12


# ---- the table


def test_a_patient_is_the_same_in_a_small_and_in_a_large_cohort(tmp_path):
    few = write_clinical(TINY, 8, tmp_path / "few.csv").read_text().splitlines()
    many = write_clinical(TINY, 30, tmp_path / "many.csv").read_text().splitlines()
    assert len(few) == 9
    assert many[:9] == few
    assert many[8].startswith("P08,")
    assert patient_record(TINY, 7) == Clinic(TINY).record(7)
    assert write_clinical(preset("tiny", seed=1), 8, tmp_path / "other.csv").read_text().splitlines()[1:] != few[1:]


def test_the_cohort_reads_the_table_it_was_given(tmp_path):
    cohort = Cohort.create(tmp_path / "cohort")
    for number in (1, 2):
        cohort.add(small.draft(f"P{number:02d}-S1", patient=f"P{number:02d}"))
    write_clinical(TINY, 2, cohort.path / "clinical.csv")
    table = cohort.clinical
    assert list(table.index) == ["P01", "P02"]
    record = patient_record(TINY, 1)
    row = table.loc["P02"]
    assert {"subtype", "stain_site", "chemistry_site", "mutation", "months", "event"} <= set(table.columns)
    assert len([c for c in table.columns if c.startswith("truth_")]) == 4 + len(FEATURES)
    for column, value in record.items():
        if column != "patient":
            assert row[column] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4))
    assert len(FEATURES) == len(DOMAINS) + len(CELL_TYPES) + len(STATES)
