"""The experiment on the `niche` preset and its control: what it takes off, and that its two worlds are one tissue."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from triglyph.errors import ContractError
from triglyph.tissue.simulate.cohort import draft_of
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
stamp_niche = importlib.import_module("stamp_niche")
Asked = stamp_niche.Asked

SMALL = (*stamp_niche.SETTINGS, "anatomy.side_um=700", "molecules.filler_genes=0")


def sections(n, *, rows=200, dim=6, seed=0, beyond=0.0):
    """Own content tells embedding and target; `beyond` of something else is in both."""
    rng = np.random.default_rng(seed)
    mix, weigh = rng.normal(size=(4, dim)), rng.normal(size=(4, 2))
    out = []
    for _ in range(n):
        own, hidden = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 1))
        embedding = own @ mix + beyond * hidden + 0.1 * rng.normal(size=(rows, dim))
        target = own @ weigh + beyond * hidden + 0.1 * rng.normal(size=(rows, 2))
        out.append(Asked(embedding, target, own))
    return out


def plain(asked):
    return [a._replace(own=None) for a in asked]


def test_what_own_content_tells_is_taken_off_and_what_lies_beyond_it_is_left():
    same, more = sections(12), sections(12, beyond=1.0)
    assert np.mean(stamp_niche.told(plain(same[:6]), plain(same[6:]))) > 0.9
    assert abs(np.mean(stamp_niche.told(same[:6], same[6:]))) < 0.1
    assert np.mean(stamp_niche.told(more[:6], more[6:])) > 0.9


@pytest.mark.parametrize("own", [True, False])
def test_what_sets_sections_apart_moves_no_score(own):
    still, moved = (sections(8, beyond=0.3, seed=3), sections(8, beyond=0.3, seed=3))
    rng = np.random.default_rng(9)
    moved = [
        Asked(a.embedding + 5 * rng.normal(size=6), a.target + rng.normal(size=2), a.own + rng.normal()) for a in moved
    ]
    if not own:
        still, moved = plain(still), plain(moved)
    one, other = (stamp_niche.told(s[:4], s[4:]) for s in (still, moved))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_patient_with_few_locations_has_no_score_and_changes_no_other():
    given = sections(8, beyond=1.0)
    few = Asked(*(x[: stamp_niche.MIN_LOCATIONS - 1] for x in given[6]))
    scores = stamp_niche.told(given[:6], [few, given[7]])
    assert np.isnan(scores[0])
    assert scores[1] == stamp_niche.told(given[:6], [given[7]])[0]


def test_what_reaches_a_location_is_the_rna_of_its_cells_by_type():
    specimen = Specimen(preset("niche", overrides=(*SMALL, "molecules.bleed_um=0")), 0, 0)
    found, cells = stamp_niche.caught(specimen), specimen.tissue.cells
    assert found.shape == (len(specimen.centres_um), len(CELL_TYPES))
    for row, centre in zip(found, specimen.centres_um, strict=True):
        near = np.hypot(*(cells.xy_um - centre).T) <= specimen.config.spots.diameter_um / 2
        for kind, amount in enumerate(row):
            assert amount == pytest.approx(specimen.rna[near & (cells.kind == kind)].sum())


def test_both_worlds_have_the_same_tissue_and_the_same_truth_and_other_counts():
    tables = []
    for change in stamp_niche.WORLDS.values():
        specimen = Specimen(preset("niche", seed=4, overrides=(*SMALL, *change)), 1, 0)
        tables.append((draft_of(specimen, []).table, stamp_niche.caught(specimen)))
    (niche, own), (control, same_own) = tables
    for key in ("spatial", "truth_surroundings", "truth_niches", "truth_composition", "truth_states", "truth_domains"):
        np.testing.assert_array_equal(niche.obsm[key], control.obsm[key])
    np.testing.assert_array_equal(own, same_own)
    assert (niche.X != control.X).nnz > 0


def test_a_cohort_goes_on_where_it_was_and_another_world_is_refused(tmp_path):
    config, other = (preset("niche", seed=4, overrides=(*SMALL, *change)) for change in stamp_niche.WORLDS.values())
    stamp_niche.simulated(tmp_path / "c", config, patients=1)
    before = (tmp_path / "c" / "sections" / "P01-S1" / "section.json").stat().st_mtime_ns
    cohort = stamp_niche.simulated(tmp_path / "c", config, patients=2)
    assert cohort.ids == ["P01-S1", "P02-S1"]
    assert (tmp_path / "c" / "sections" / "P01-S1" / "section.json").stat().st_mtime_ns == before
    assert stamp_niche.CAUGHT in cohort["P02-S1"].table.obsm
    with pytest.raises(ContractError, match="of another world"):
        stamp_niche.simulated(tmp_path / "c", other, patients=2)


def test_no_patient_is_on_both_sides():
    fold = stamp_niche.held_out_split(training=3, held_out=2).fold()
    assert (fold.train, fold.test) == (("P01-S1", "P02-S1", "P03-S1"), ("P04-S1", "P05-S1"))


def test_the_difference_of_differences_is_of_the_same_patients_with_seeds_averaged():
    on = {"contextual, own": [[0.5, 0.6, 0.7], [0.7, 0.8, 0.9]], "intrinsic, own": [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]}
    off = {"contextual, own": [[0.2, 0.3, float("nan")]], "intrinsic, own": [[0.1, 0.1, 0.1]]}
    worlds = {name: {k: {"q": v} for k, v in of.items()} for name, of in (("niche", on), ("control", off))}
    found = stamp_niche.differences(worlds, "q", "own")
    assert found["niche"].difference == pytest.approx(0.5)
    assert found["control"].difference == pytest.approx(0.15)
    both = found["niche less control"]
    assert (both.n_patients, both.n_left_out) == (2, 1)
    assert both.difference == pytest.approx(0.5 - 0.15)
