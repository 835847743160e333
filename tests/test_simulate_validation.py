"""A simulated world says at once which knob does not fit, and states the noise that its counts truly have."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from triglyph.errors import RecipeError
from triglyph.tissue.simulate.cohort import draft_of
from triglyph.tissue.simulate.knobs.anatomy import Nucleus
from triglyph.tissue.simulate.knobs.names import PROTEIN_CHANNELS
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.molecules import transcripts
from triglyph.tissue.simulate.molecules.bins import bin_table, effective_dispersion
from triglyph.tissue.simulate.picture.protein import CHANNELS
from triglyph.tissue.simulate.presets import DIFFICULTIES, preset, preset_names
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream

REFUSED = {
    # Tables whose keys something reads.
    "anatomy.fractions.invasive=0.5": "anatomy.fractions: 'invasive' is no domain; did you mean invasive cancer",
    "anatomy.cells_per_mm2.necroses={}": "anatomy.cells_per_mm2: 'necroses' is no domain; did you mean necrosis",
    "anatomy.cells_per_mm2.necrosis.T cells=5": "anatomy.cells_per_mm2.necrosis: 'T cells' is no cell type",
    "anatomy.cells_per_mm2.necrosis.T cell=-5": "anatomy.cells_per_mm2.necrosis.T cell",
    "anatomy.nuclei.mast cell={long_um: 9, short_um: 9}": "anatomy.nuclei: 'mast cell' is no cell type",
    "anatomy.nuclei.tumour.short_um=20": "anatomy.nuclei.tumour: long_um 10.6 is less than short_um 20",
    "anatomy.fractions.necrosis=-0.1": "anatomy.fractions.necrosis",
    # Numbers.
    "sections_per_patient=[]": "sections_per_patient",
    "sections_per_patient=[2, 0]": "sections_per_patient.1",
    "anatomy.domain_um=0": "anatomy.domain_um",
    "anatomy.side_um=-5": "anatomy.side_um",
    "anatomy.section_change=1.2": "anatomy.section_change",
    "anatomy.duct_um=[210, 90]": "anatomy.duct_um: 210 to 90 runs backwards",
    "anatomy.wobble_um=[30, 90]": "anatomy: wobble_um is a coarse and a fine length",
    "molecules.site_gene=-0.1": "molecules.site_gene",
    "molecules.base_spread=.inf": "molecules.base_spread",
    "molecules.depth_range=[10000, 650]": "molecules.depth_range: 10000 to 650 runs backwards",
    "molecules.depth_range=[0, 650]": "molecules.depth_range.0",
    "molecules.median_depth=20000": "molecules: median_depth 20000 lies outside depth_range, 650 to 10000",
    "people.subtype=.nan": "people.subtype",
    "stain.mpp=[0.8, 0.2]": "stain.mpp: 0.8 to 0.2 runs backwards",
    "stain.mpp=[0.001, 0.2]": "stain.mpp.0",
    "stain.white=[240, 300]": "stain.white.1",
    "stain.tile=100": "stain.tile",
    "spots.min_tissue=60": "spots.min_tissue",
    "transcripts.per_cell=0": "transcripts.per_cell",
    "language.border=30": "language.border",
    "language.some=0.5": "language: some lies above many",
    # Blocks that have to fit together.
    "spots.platform=xenium": "spots: lattice: xenium has a square one",
    "spots.platform=st": "spots: lattice: st has a square one",
    "spots={platform: visium-hd, lattice: square, diameter_um: 16, pitch_um: 8}": "spots: pitch_um 8 is less than",
    "spots.diameter_um=200": "molecules.niche_um 90 does not reach out of a location of spots.diameter_um 200",
    "anatomy.side_um=100": "anatomy.side_um 100 has no room for one location",
    "protein.channels=[DAPI, CD33]": "protein.channels: 'CD33' is no channel; did you mean CD3",
    "protein.channels=[DAPI, DAPI]": "protein.channels: the channel 'DAPI' is named twice",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_knob_that_nothing_reads_or_that_cannot_be_is_refused_by_name(override):
    with pytest.raises(RecipeError) as caught:
        preset("visium", overrides=[override])
    assert REFUSED[override] in str(caught.value)


@pytest.mark.parametrize(
    ("block", "key"), [("fractions", "necrosis"), ("cells_per_mm2", "necrosis"), ("nuclei", "tumour")]
)
def test_a_table_that_lacks_what_something_reads_is_refused(block, key):
    values = preset("tiny").model_dump()
    del values["anatomy"][block][key]
    with pytest.raises(ValidationError, match=f"there is no value for the (domain|cell type) '{key}'"):
        Simulation.model_validate(values)


def test_a_cell_type_that_a_domain_does_not_name_is_not_there_and_that_is_allowed():
    values = preset("tiny").model_dump()
    values["anatomy"]["cells_per_mm2"]["necrosis"] = {}
    assert Simulation.model_validate(values).anatomy.cells_per_mm2["necrosis"] == {}


def test_a_round_nucleus_and_a_point_range_are_allowed():
    assert Nucleus(long_um=6.0, short_um=6.0).short_um == 6.0
    assert preset("visium", overrides=["stain.mpp=[0.5, 0.5]"]).stain.mpp == (0.5, 0.5)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_at_every_difficulty(name):
    for difficulty in DIFFICULTIES:
        made = preset(name, difficulty=difficulty)
        assert Simulation.model_validate(made.model_dump()) == made


def test_the_channels_that_may_be_named_are_those_that_can_be_drawn():
    assert tuple(CHANNELS) == PROTEIN_CHANNELS


# ---- the noise that is stated

EVEN = (
    "anatomy.side_um=420", "anatomy.domain_um=150", "spots.margin_um=80", "spots.diameter_um=40", "spots.pitch_um=40",
    "molecules.filler_genes=0", "molecules.base_spread=0.2", "molecules.marker=0", "molecules.type_noise=0",
    "molecules.patient_profile=0", "molecules.niche=0", "dial.shared=0", "dial.expression_only=0",
    "molecules.dispersion=1", "transcripts.per_cell=300",
)  # fmt: skip
"""All cells express all genes alike, so that the stated dispersion is every gene's."""


def test_bins_have_the_dispersion_that_is_stated_and_it_is_less_than_a_cells(monkeypatch):
    specimen = Specimen(preset("visium-hd", overrides=EVEN), 0, 0)
    redraws = []
    for number in range(25):
        # Other molecules of the very same cells.
        monkeypatch.setattr(transcripts, "stream", lambda *keys, n=number: stream(*keys, n))
        redraws.append(bin_table(specimen)[0].toarray())
    counts = np.stack(redraws).astype(np.float64)
    mean, variance = counts.mean(0), counts.var(0, ddof=1)
    # The square of a mean of redraws is too large by the variance of that mean.
    seen = (variance - mean).sum(1) / (mean**2 - variance / len(counts)).sum(1)
    stated = effective_dispersion(specimen)
    assert stated < 0.5
    assert np.median(seen) == pytest.approx(stated, rel=0.1)


def test_larger_bins_share_more_cells_and_have_less_dispersion():
    def of(side_um: float) -> float:
        keys = (f"spots.diameter_um={side_um}", f"spots.pitch_um={side_um}")
        return effective_dispersion(Specimen(preset("visium-hd", overrides=[*EVEN, *keys]), 0, 0))

    assert 1.0 > of(8.0) > of(20.0) > of(60.0) > 0


def test_a_draft_states_the_dispersion_of_its_platforms_locations():
    spots = Specimen(preset("tiny"), 0, 0)
    bins = Specimen(preset("visium-hd", overrides=EVEN), 0, 0)
    assert draft_of(spots, []).source["truth_dispersion"] == spots.config.molecules.dispersion
    assert draft_of(bins, []).source["truth_dispersion"] == effective_dispersion(bins) < 1
