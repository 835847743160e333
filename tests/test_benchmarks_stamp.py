"""Stamp's experiments on simulated tissue: what they take off, how they score, and that their worlds are one tissue."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import small
from triglyph.encoders.tile_vit import TileViT
from triglyph.errors import ContractError
from triglyph.models.method import RegionConfig
from triglyph.models.stamp_align import StampAlign, StampAlignConfig
from triglyph.tissue.simulate.cohort import draft_of
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.training.dataset import Locations, Visit, training_rows
from triglyph.training.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
stamp_niche = importlib.import_module("stamp_niche")
stamp_fusion = importlib.import_module("stamp_fusion")
stamp_localisation = importlib.import_module("stamp_localisation")
stamp_ranks = importlib.import_module("stamp_ranks")
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


# ---- fusion


def test_programmes_of_a_world_are_those_that_its_dial_leaves():
    for world, dial in stamp_fusion.DIALS.items():
        config = preset(stamp_fusion.PRESET, overrides=(*stamp_fusion.SETTINGS, *dial))
        moved = {state: config.dial.strength(state) for state in STATES if any(config.dial.strength(state))}
        assert set(moved) == set(stamp_fusion.PROGRAMMES[world])
        assert ([all(seen) for seen in moved.values()] == [True] * 4) == (world == "shared")
    seen_in_split = [preset("visium", overrides=stamp_fusion.DIALS["split"]).dial.strength(s) for s in STATES]
    assert {tuple(x > 0 for x in seen) for seen in seen_in_split} == {(False, False), (True, False), (False, True)}


def test_states_are_told_by_a_ridge_of_the_training_sections_alone():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 6))
    states = [rng.normal(size=(80, 3)) for _ in range(4)]
    given = [(y @ mix + 0.01 * rng.normal(size=(80, 6)), y) for y in states]
    assert np.min(stamp_fusion.told(given[:3], given[3:])) > 0.99
    # Shift and size of what a test section is asked for move no correlation.
    moved = [(x, 5 * y + 2) for x, y in given[3:]]
    np.testing.assert_allclose(stamp_fusion.told(given[:3], moved), stamp_fusion.told(given[:3], given[3:]))
    still = [(given[3][0], np.hstack([given[3][1][:, :2], np.ones((80, 1))]))]
    assert np.isnan(stamp_fusion.told(given[:3], still)[0][2])


def scored(value, *, patients=8, seeds=2):
    """(seeds, patients, programmes): about `value`, seeds and programmes apart by what averages out."""
    rng = np.random.default_rng(1)
    own = 0.002 * rng.normal(size=patients)
    spread = np.array([-0.1, 0.1])
    found = value + own[None, :, None] + spread[:seeds, None, None] + spread[None, None, :]
    found[0, 0, 1] = float("nan")
    found[1, 0, 1] = float("nan")
    return found.tolist()


def test_patients_are_the_units_and_equality_is_with_the_better_part():
    scores = {name: scored(0.5) for name in stamp_fusion.FUSIONS}
    scores |= {"image": scored(0.2), "expression": scored(0.5), "fused-sum": scored(0.45)}
    assert stamp_fusion.means(scores, "image").shape == (8, 2)
    assert not np.isnan(stamp_fusion.means(scores, "image")).any()
    said = stamp_fusion.comparisons(scores, margin=0.01)
    assert "fused-concat is better than Stamp_V" in said["fused-concat and image"]
    assert "over 8 patients" in said["fused-concat and image"]
    assert said["fused-concat equals expression"].startswith("fused-concat and Stamp_G are equivalent")
    assert "not shown to be equivalent" in said["fused-sum equals expression"]
    assert not any("equals image" in key for key in said)
    assert not any("equals" in key for key in stamp_fusion.comparisons(scores, margin=None))


# ---- localisation


def answers(said, true):
    said, true = (np.array(x, dtype=np.int64) for x in (said, true))
    return stamp_localisation.Answers(said, said, true)


def test_the_share_of_patches_in_their_own_cell():
    some, none = answers([0, 4, 8, 8], [0, 4, 8, 7]), answers([], [])
    assert stamp_localisation.share_right(some.said, some.true) == 0.75
    assert np.isnan(stamp_localisation.share_right(none.said, none.true))
    always = answers([1, 2], [4, 4])
    assert stamp_localisation.commonest([some, always, none]) == pytest.approx((0.25 + 1.0) / 2)


def test_arms_differ_by_layout_and_by_who_learns():
    found = {arm: stamp_localisation.changes_of(arm, Path("RUN")) for arm in stamp_localisation.ARMS}
    lock = {"model.towers.image.mode=locked", "model.towers.image.weights=RUN"}
    assert [set(changes) for changes in found.values()] == [
        set(),
        {"model.compat=release"},
        lock,
        {"model.compat=release", *lock},
    ]
    for changes in (*found.values(), stamp_localisation.TOWER):
        model = load_recipe("stamp-align-tiny", overrides=[*stamp_localisation.IMAGES, *changes]).model
        assert "expression" not in model.towers
        assert ("localisation" in model.terms) == (changes is not stamp_localisation.TOWER)


def data_of(model, section, *, draw):
    """A batch of all locations of a section, with the regions of a draw."""
    rows = training_rows([section], ("image",), (("image",),))
    data = Locations(rows, {"image": model.encoder("image")}, cached={}, wider=RegionConfig(draws=None))
    return data[Visit(draw, np.arange(len(rows)))]


def test_every_location_whose_region_fits_is_asked_for_once_a_draw(tmp_path):
    cohort = small.cohort(tmp_path)
    config = StampAlignConfig.model_validate(
        {
            "dim": 8,
            "towers": {"image": {"encoder": "tile-vit", "mode": "scratch"}},
            "weights": {"patch_spot": 0, "region_spot": 0},
        }
    )
    torch.manual_seed(0)
    model = StampAlign(config, {"image": TileViT(dim=16, depth=1, heads=1, patch_px=8)}).eval()
    section = cohort["S0"]
    found = stamp_localisation.asked_of(model, section)
    cuts = config.regions.cuts(TileViT.card)
    cells = np.concatenate([cuts.places(section, draw).cell for draw in stamp_localisation.DRAWS])
    np.testing.assert_array_equal(found.true, cells[cells >= 0])
    assert len(found.said) == len(found.strange) == len(found.true)
    assert (found.said != found.strange).any()
    entry = data_of(model, section, draw=stamp_localisation.DRAWS[0])
    with torch.no_grad():
        cosines = model.eval()(entry).predictions["cell"]
    fits = entry["image"]["cell"] >= 0
    first = cosines[fits].argmax(dim=1).numpy()
    np.testing.assert_array_equal(found.said[: len(first)], first)
    assert not set(stamp_localisation.DRAWS) & {config.regions.draw(epoch) for epoch in range(20)}
    # Nothing is kept of regions that are only judged.
    assert not any(section.windows.has(cuts.fingerprint(draw)) for draw in stamp_localisation.DRAWS)


# ---- how much later genes weigh


def test_the_decay_of_ranks_is_chosen_by_what_tells_neighbours(tmp_path):
    config = preset("niche", seed=4, overrides=SMALL)
    cohort = stamp_niche.simulated(tmp_path / "c", config, patients=3)
    sections = list(cohort)
    targets = stamp_ranks.neighbours_expression(sections)
    for section in sections:
        gap = np.hypot(*(section.centres_um[:, None] - section.centres_um[None]).transpose(2, 0, 1))
        assert np.isfinite(targets[section.id]).all() == (np.sort(gap, axis=1)[:, 1] < 150).all()
    found = stamp_ranks.chosen_decay(sections, decays=[30.0, None], genes=200, dim=8)
    assert found.shape == (2,)
    assert ((found > 0.02) & (found < 1)).all()
    again = stamp_ranks.chosen_decay(sections[::-1], decays=[None, 30.0], genes=200, dim=8)
    np.testing.assert_allclose(again, found[::-1], atol=2e-3)
