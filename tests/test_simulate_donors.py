"""Donors: expression and text of other people, without images, across a platform gap that all of them share."""

from __future__ import annotations

import numpy as np
import pytest

from triglyph.errors import ContractError
from triglyph.tissue.checks import check_draft
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.simulate.donors import FIRST, DonorSpecimen, platform_gap, simulate_donor
from triglyph.tissue.simulate.fields import sample
from triglyph.tissue.simulate.knobs.molecules import Spots
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.molecules.programs import gene_symbols
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

TINY = preset("tiny")


def world(**changes: float) -> Simulation:
    """Tiny, with knobs of donors, molecules or spots changed."""
    update = {}
    for part in ("donors", "molecules", "spots"):
        knobs = getattr(TINY, part)
        mine = {name: value for name, value in changes.items() if name in type(knobs).model_fields}
        update[part] = knobs.model_copy(update=mine)
    return TINY.model_copy(update=update)


FEW = world(locations=60)


def expected(config: Simulation, donor: int) -> np.ndarray:
    return DonorSpecimen(config, FIRST + donor, 0).expected


@pytest.fixture(scope="module")
def drafts() -> list[SectionDraft]:
    return [simulate_donor(FEW, donor) for donor in range(2)]


def test_a_donor_passes_the_contract_and_has_no_image(drafts):
    for number, draft in enumerate(drafts):
        checked = check_draft(draft, where="donor")
        assert checked.images == []
        assert (checked.section_id, checked.patient) == (f"D0{number + 1}-S1", f"D0{number + 1}")
        assert checked.platform == "rna-only"
        assert checked.pitch_um is None
        assert checked.table.n_obs == 60
        assert set(checked.table.obs["batch"]) == {"rna-only"}
        assert not {"array_row", "array_col"} & set(checked.table.obs)
        assert not [key for key in checked.source if key.endswith("_site")]


def test_the_knob_is_the_number_of_profiles_also_where_the_tissue_is_small():
    assert simulate_donor(world(locations=150), 0).table.n_obs == 150
    # More of them, and the first stay where they were.
    assert len(Specimen(TINY, FIRST, 0).centres_um) < 150


def test_centres_are_true_and_under_tissue(drafts):
    for number, draft in enumerate(drafts):
        table, tissue = draft.table, Specimen(TINY, FIRST + number, 0).tissue
        np.testing.assert_array_equal(table.obsm["spatial"], table.obsm["truth_spatial"])
        assert (sample(tissue.cover, table.obsm["spatial"], tissue.step_um) > 0).mean() > 0.95
        assert np.ptp(table.obsm["spatial"], axis=0).min() > 0.5 * TINY.anatomy.side_um


def test_every_donor_has_captions_and_labels(drafts):
    for draft in drafts:
        captions = draft.table.obs["caption"]
        assert (captions != "").mean() > 0.8
        assert captions.nunique() > 20
        assert (draft.table.obs["label"] != "").all()
        assert (draft.table.obs["caption_held_out"] != "").all()


def test_the_gap_is_a_factor_per_gene_common_to_all_donors():
    wide, none = world(locations=20, gap=0.6), world(locations=20, gap=0.0)
    logs = []
    for donor in range(2):
        ratio = np.log(expected(wide, donor) / expected(none, donor))
        # Depth is the same, so that each row has its own constant.
        logs.append(ratio - ratio.mean(1, keepdims=True))
    gap = platform_gap(wide, logs[0].shape[1])
    for log in logs:
        np.testing.assert_allclose(log, np.broadcast_to(gap - gap.mean(), log.shape), atol=1e-9)
    assert gap.std() == pytest.approx(0.6, rel=0.15)
    assert not platform_gap(none, 50).any()


def test_donors_are_counted_to_their_own_depth():
    once, thrice = expected(world(locations=20, depth=1.0), 0), expected(world(locations=20, depth=3.0), 0)
    np.testing.assert_allclose(thrice, 3 * once)
    counts = simulate_donor(FEW, 0).table.X
    assert counts.sum() == pytest.approx(expected(FEW, 0).sum(), rel=0.05)


def test_sites_of_the_cohort_have_no_part_in_a_donors_counts():
    np.testing.assert_array_equal(
        expected(world(locations=20, site_gene=0.9), 0), expected(world(locations=20, site_gene=0.0), 0)
    )


@pytest.mark.parametrize("platform", ["visium-hd", "xenium"])
def test_donors_of_worlds_of_single_molecules_are_profiles_of_all_genes_too(platform):
    bins = Spots(platform=platform, diameter_um=16.0, pitch_um=16.0, lattice="square")
    config = world(locations=30).model_copy(update={"spots": bins})
    draft = simulate_donor(config, 0)
    assert (draft.location_um, draft.location_shape, draft.table.n_obs) == (55.0, "circle", 30)
    assert draft.table.var["measured"].all()
    assert draft.table.n_vars == len(gene_symbols())
    # It belongs to the world that was asked for.
    assert draft.source["config"] == config.digest()


def test_donors_are_other_people_than_the_patients_and_each_other(drafts):
    one, two = (Specimen(TINY, FIRST + donor, 0).person.shares() for donor in range(2))
    assert np.abs(one - two).max() > 0.01
    for patient in range(3):
        assert np.abs(one - Specimen(TINY, patient, 0).person.shares()).max() > 0.01
    assert (drafts[0].table.X != drafts[1].table.X).nnz


def test_the_same_seed_gives_the_same_donor_in_any_order(drafts):
    again = simulate_donor(FEW, 1)
    assert again.table.X.data.tobytes() == drafts[1].table.X.data.tobytes()
    assert again.table.obs.to_csv() == drafts[1].table.obs.to_csv()
    for key in again.table.obsm:
        assert again.table.obsm[key].tobytes() == drafts[1].table.obsm[key].tobytes()
    assert again.source == drafts[1].source


def test_too_little_tissue_is_an_error_with_a_mend():
    with pytest.raises(ContractError, match=r"0 of 5 profiles[\s\S]*mend"):
        simulate_donor(world(locations=5, min_tissue=1.5), 0)
