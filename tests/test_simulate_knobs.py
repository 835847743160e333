"""Knobs do what they say: for each, a plain baseline moves in the stated direction, and its control does not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from triglyph.tissue.simulate.anatomy.tissue import Tissue
from triglyph.tissue.simulate.knobs.molecules import Spots
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.states import EXPRESSION_STATES, SHARED_STATES, STATES
from triglyph.tissue.simulate.locations import Footprint
from triglyph.tissue.simulate.molecules.counts import section_chemistry
from triglyph.tissue.simulate.molecules.programs import NICHES
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.presets import DIFFICULTIES, preset
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.specimen import Specimen

SMALL = (
    "anatomy.side_um=1150",
    "molecules.filler_genes=150",
    "spots.pitch_um=75",
    "people.absent=0",
    "molecules.median_depth=6000",
)


TISSUES: dict[tuple[object, ...], Tissue] = {}


@cache
def specimen(patient: int, section: int, *overrides: str) -> Specimen:
    made = Specimen(preset("visium", overrides=[*SMALL, *overrides]), patient, section)
    c = made.config
    # Knobs of molecules, labels and registration do not touch the tissue, so one tissue serves many tests.
    people = c.people.model_copy(update={"registration_um": 0.0, "registration_bend_um": 0.0})
    decides = (str(c.anatomy), str(people), c.dial, c.sections_per_patient, c.molecules.patch_um, patient, section)
    made.__dict__["tissue"] = TISSUES.setdefault(decides, TISSUES.get(decides) or made.tissue)
    return made


def log_composition(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    return np.log1p(counts / total * 1e4).astype(np.float64)


def observed(s: Specimen) -> NDArray[np.float64]:
    return log_composition(s.table.X.toarray())


def explained(x: NDArray[np.float64], y: NDArray[np.float64], *, folds: int = 4, alpha: float = 3.0) -> float:
    """Share of the variance of `y` that ridge on `x` explains, every fourth location held out in turn."""
    fold = np.arange(len(x)) % folds
    predicted = np.empty_like(y)
    for k in range(folds):
        train = fold != k
        mean, spread = x[train].mean(0), x[train].std(0) + 1e-9
        a, b = (x[train] - mean) / spread, y[train] - y[train].mean(0)
        weights = np.linalg.solve(a.T @ a + alpha * np.eye(a.shape[1]), a.T @ b)
        predicted[~train] = (x[~train] - mean) / spread @ weights + y[train].mean(0)
    return float(1 - ((y - predicted) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())


def states_from_genes(names: tuple[str, ...], *overrides: str) -> float:
    """How well counts tell the states apart, spot noise and all."""
    values = []
    for patient in range(2):
        s = specimen(patient, 0, *overrides)
        x = observed(s)
        truth = s.states[:, [STATES.index(name) for name in names]]
        values.append(explained(x, truth, alpha=300.0))
    return float(np.mean(values))


@pytest.mark.parametrize(("names", "key"), [(SHARED_STATES, "shared"), (EXPRESSION_STATES, "expression_only")])
def test_the_dial_decides_whether_genes_tell_a_programme(names, key):
    other = {"shared": "expression_only", "expression_only": "shared"}[key]
    on = states_from_genes(names, f"dial.{key}=2")
    off = states_from_genes(names, f"dial.{key}=0")
    control = states_from_genes(names, f"dial.{key}=2", f"dial.{other}=0")
    assert on > off + 0.15
    assert abs(on - control) < 0.5 * (on - off)


@pytest.mark.parametrize("name", ["visium", "visium-hd", "xenium"])
def test_morphology_only_programmes_never_reach_the_counts(name):
    small = ("anatomy.side_um=500", "molecules.filler_genes=0")
    made = [Specimen(preset(name, overrides=[*small, f"dial.morphology_only={d}"]), 0, 0) for d in (0, 3)]
    plain, strong = (s.table for s in made)
    assert plain.n_obs > 10
    assert plain.X.sum() > 1000
    assert (plain.X != strong.X).nnz == 0
    assert np.array_equal(plain.layers["truth_expected"], strong.layers["truth_expected"])
    # The control: they are seen.
    assert not np.array_equal(made[0].tissue.cells.long_um, made[1].tissue.cells.long_um)


def niche_gain(*overrides: str) -> float:
    """What a location's surroundings add to its own cells and states in telling its niche genes, noise-free."""
    gains = []
    for patient in range(2):
        s = specimen(patient, 0, *overrides)
        genes = [s.world.symbols.index(g) for _, _, text in NICHES.values() for g in text.split()]
        target = log_composition(s.expected)[:, genes]
        composition = s.table.obsm["truth_composition"]
        own = np.hstack([composition, s.states, *(composition[:, [t]] * s.states for t in range(3))])
        called = np.stack([composition[:, CELL_TYPES.index(receiver)] for receiver, _, _ in NICHES.values()], 1)
        around = np.hstack([own, s.niches * called])
        gains.append(explained(around, target) - explained(own, target))
    return float(np.mean(gains))


def test_surroundings_tell_niche_genes_only_where_the_niche_effect_is_on():
    calm = ("molecules.depth_noise=0", "molecules.subspot=0")
    assert niche_gain("molecules.niche=4.0", *calm) > 0.05
    assert abs(niche_gain("molecules.niche=0", *calm)) < 0.02


def patch_gain(*overrides: str) -> float:
    """What weighting a spot's cells by what their patch yields adds to counting them."""
    gains = []
    for patient in range(2):
        s = specimen(patient, 0, *overrides)
        table, cells, patch = s.table, s.tissue.cells, s.tissue
        at = (cells.xy_um / patch.step_um).astype(int)
        weight = np.exp(1.2 * patch.patch[at[:, 1], at[:, 0]])
        near = (
            np.hypot(*(cells.xy_um[None] - s.centres_um[:, None]).transpose(2, 0, 1)) < s.config.spots.diameter_um / 2
        )
        kinds = np.eye(8)[cells.kind]
        weighted = (near * weight) @ kinds
        weighted /= np.maximum(weighted.sum(1, keepdims=True), 1e-9)
        plain = table.obsm["truth_composition"]
        target = log_composition(s.expected)
        gains.append(explained(weighted, target) - explained(plain, target))
    return float(np.mean(gains))


def test_where_in_a_spot_cells_lie_matters_only_with_sub_spot_structure():
    calm = ("dial.expression_only=0", "dial.shared=0", "molecules.bleed_um=0", "anatomy.section_change=0")
    assert patch_gain("molecules.subspot=1.2", *calm) > 0.02
    assert patch_gain("molecules.subspot=0", *calm) < 0.0


def offset_share(*overrides: str) -> float:
    """Share of the squared error of other patients' mean that is the patient's own mean, on log1p of counts."""
    logs = [np.log1p(specimen(p, 0, *overrides).table.X.toarray()) for p in range(4)]
    shares = []
    for p, y in enumerate(logs):
        mean = np.vstack([x for q, x in enumerate(logs) if q != p]).mean(0)
        total = ((y - mean) ** 2).mean()
        shares.append(1 - ((y - y.mean(0)) ** 2).mean() / total)
    return float(np.mean(shares))


def test_patient_offsets_carry_the_error_across_patients_and_the_knob_removes_them():
    flat = ("molecules.site_gene=0", "molecules.patient_profile=0", "molecules.patient_depth=0")
    assert offset_share("molecules.patient_gene=0.8", *flat) > offset_share("molecules.patient_gene=0", *flat) + 0.2


def transfer(private: float) -> tuple[float, float]:
    """Agreement of a gene's link to the states between two patients, and between two sections of one."""
    key = f"molecules.private={private}"
    worlds = [specimen(p, 0, key).world.loading for p in range(2)]
    own = specimen(0, 1, key).world.loading

    def agree(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    return agree(worlds[0], worlds[1]), agree(worlds[0], own)


def test_private_programmes_do_not_transfer_between_patients_and_do_within_one():
    common, half, own = transfer(0.0), transfer(0.5), transfer(1.0)
    assert common == (pytest.approx(1.0), pytest.approx(1.0))
    assert half[0] == pytest.approx(0.5, abs=0.1)
    assert own[0] == pytest.approx(0.0, abs=0.1)
    assert half[1] == own[1] == pytest.approx(1.0)


def test_the_hierarchy_of_offsets_is_site_patient_block_section():
    keys = ("sections_per_patient=[4]", "people.blocks=2", "molecules.block_gene=0.5", "molecules.section_gene=0.3")
    offset = [specimen(0, s, *keys).chemistry.gene_offset for s in range(4)]
    other = specimen(1, 0, *keys).chemistry.gene_offset

    def apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float((a - b).std())

    assert apart(offset[0], offset[1]) == pytest.approx(0.3 * np.sqrt(2), rel=0.15)
    assert apart(offset[0], offset[2]) == pytest.approx(np.sqrt(2 * (0.3**2 + 0.5**2)), rel=0.15)
    assert apart(offset[0], other) > apart(offset[0], offset[2])


def test_confounding_ties_site_to_subtype_and_crossing_does_not():
    def tie(confounding: float) -> float:
        config = preset("confounded", overrides=[f"people.confounding={confounding}"])
        people = [person(config, p) for p in range(400)]
        subtype = np.array([p.subtype for p in people])
        return float(np.corrcoef(subtype, [p.chemistry_site for p in people])[0, 1])

    assert tie(1.0) == pytest.approx(1.0)
    assert abs(tie(0.0)) < 0.12
    assert 0.3 < tie(0.5) < 0.7


def test_stain_and_chemistry_sites_are_independent_unless_confounded():
    config = preset("confounded", overrides=["people.confounding=0"])
    sites = np.array([(person(config, p).stain_site, person(config, p).chemistry_site) for p in range(400)])
    assert abs(np.corrcoef(sites.T)[0, 1]) < 0.12


def test_some_patients_lack_a_class_and_the_knob_says_how_many():
    def lacking(absent: float) -> NDArray[np.float64]:
        config = preset("visium", overrides=[f"people.absent={absent}"])
        return np.mean([person(config, p).shares() == 0 for p in range(300)], 0)

    free = np.array([name not in ("invasive cancer", "connective tissue") for name in DOMAINS])
    assert not lacking(0.0).any()
    assert lacking(0.4)[free] == pytest.approx(0.4, abs=0.1)
    assert not lacking(0.4)[~free].any()


def test_a_class_that_a_patient_lacks_is_nowhere_in_its_tissue():
    config = preset("visium", overrides=[*SMALL, "people.absent=0.9"])
    s = Specimen(config, 0, 0)
    gone = s.person.shares() == 0
    assert gone.any()
    assert s.domain_shares[:, gone].max() < 1e-6
    assert not set(np.array(DOMAINS)[gone]) & set(s.labels)


def test_subtypes_differ_in_their_states_and_the_knob_removes_it():
    for apart in (0.0, 1.0):
        config = preset("visium", overrides=[f"people.subtype={apart}"])
        shifts = np.array([person(config, p).state_shift for p in range(40)])
        assert np.ptp(shifts[:, STATES.index("oestrogen response")]) == pytest.approx(apart)


def test_depth_spreads_over_650_to_10000_a_spot_and_heaps_up_at_neither_end():
    config = preset("visium", overrides=["molecules.patient_depth=3", "molecules.median_depth=3000"])
    depths = np.array([section_chemistry(config, p, 0, 1).depth for p in range(400)])
    assert 650 < depths.min() < 750
    assert 9500 < depths.max() < 10000
    # Over so wide a spread log depth is all but even: a tenth of patients in every tenth of it.
    share = np.histogram(np.log(depths), np.linspace(np.log(650), np.log(10000), 11))[0] / len(depths)
    assert share.min() > 0.05
    assert share.max() < 0.15


def test_depth_is_the_median_of_patients_where_the_range_is_far_and_is_the_knob_without_a_spread():
    def depths(spread: float) -> NDArray[np.float64]:
        config = preset("visium", overrides=[f"molecules.patient_depth={spread}", "molecules.median_depth=2500"])
        return np.array([section_chemistry(config, p, 0, 1).depth for p in range(400)])

    assert set(depths(0.0)) == {2500.0}
    assert np.median(depths(0.2)) == pytest.approx(2500, rel=0.03)
    assert np.log(depths(0.2)).std() == pytest.approx(0.2, rel=0.1)


def test_depth_follows_the_cells_unless_the_tie_is_removed():
    def tie(power: float) -> float:
        s = specimen(1, 0, f"molecules.depth_per_cells={power}", "molecules.depth_noise=0.1")
        return float(spearmanr(s.expected.sum(1), s.cells_by_type.sum(1))[0])

    assert tie(0.7) > 0.5
    assert abs(tie(0.0)) < 0.2


def test_transcripts_bleed_across_a_spots_border_and_the_knob_stops_it():
    def own_only(bleed: float) -> float:
        s = specimen(0, 0, f"molecules.bleed_um={bleed}", "molecules.ambient=0", "molecules.depth_noise=0")
        return explained(s.table.obsm["truth_composition"], log_composition(s.expected))

    assert own_only(0.0) > own_only(25.0) + 0.03


def test_locations_are_stated_off_their_place_by_the_stated_error():
    centres = np.random.default_rng(0).uniform(0, 1150, (300, 2))

    def error(shift: float, bend: float) -> NDArray[np.float64]:
        keys = (f"people.registration_um={shift}", f"people.registration_bend_um={bend}")
        config = preset("visium", overrides=[*SMALL, *keys])
        errors = [registration_error(config, p, s, centres) for p in range(30) for s in range(2)]
        return np.array([np.hypot(*e.T).mean() for e in errors])

    assert not error(0.0, 0.0).any()
    rigid = error(30.0, 0.0)
    assert np.sqrt((rigid**2).mean()) == pytest.approx(30.0, rel=0.25)
    assert 3.0 < error(0.0, 10.0).mean() < 12.0


def test_a_table_states_where_its_locations_are_and_keeps_the_truth_beside():
    s = specimen(0, 0, "people.registration_um=30")
    expected = registration_error(s.config, 0, 0, s.centres_um)
    assert np.array_equal(s.table.obsm["truth_spatial"], s.centres_um)
    assert np.allclose(s.table.obsm["spatial"] - s.centres_um, expected)


def colours(pixels: NDArray[np.uint8], spots: Spots, mpp: float, at_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 6) mean and spread of the optical density of each colour in the spots around `at_um`."""
    density, over = -np.log((pixels.astype(np.float32) + 1) / 256), Footprint(spots, mpp)
    mean, square = (
        np.stack([over.mean(values[..., colour], at_um) for colour in range(3)], 1) for values in (density, density**2)
    )
    return np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))], 1)


def test_expression_told_from_the_image_falls_with_the_registration_error_and_not_at_the_true_places():
    small = ("anatomy.side_um=900", "molecules.filler_genes=0", "spots.pitch_um=50", "spots.margin_um=100")
    keys = (*small, "stain.mpp=[0.8,0.8]", "people.registration_bend_um=0")
    exact = [specimen(patient, 0, *keys, "people.registration_um=0") for patient in range(2)]
    pictures = [he_pixels(s) for s in exact]

    def told(shift_um: float, key: str) -> float:
        found = []
        for patient, (pixels, dye) in enumerate(pictures):
            s = specimen(patient, 0, *keys, f"people.registration_um={shift_um:g}")
            seen = colours(pixels, s.config.spots, dye.mpp, s.table.obsm[key])
            found.append(explained(seen, observed(s)))
        return float(np.mean(found))

    none, some, much = (told(shift_um, "spatial") for shift_um in (0.0, 60.0, 100.0))
    assert none > some + 0.015
    assert some > much + 0.01
    assert {told(shift_um, "truth_spatial") for shift_um in (0.0, 60.0, 100.0)} == {none}


def test_annotators_err_by_region_and_leave_spots_out_only_as_told():
    def agreement(*keys: str) -> tuple[float, float]:
        s = specimen(0, 0, "labels.region_um=0", *keys)
        given = s.labels != ""
        true = np.array(DOMAINS, dtype=object)[s.domain_shares.argmax(1)]
        return float((s.labels == true)[given].mean()), float(1 - given.mean())

    exact = agreement("labels.annotator=0", "labels.unlabelled=0")
    biased = agreement("labels.annotator=2.5", "labels.unlabelled=0.2")
    assert exact == (1.0, 0.0)
    assert biased[0] < 0.95
    assert biased[1] == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize("kind", ["shared", "morphology_only", "expression_only"])
def test_the_phenotype_follows_the_programmes_that_its_dial_names(kind):
    zero = [f"labels.phenotype.{k}={int(k == kind)}" for k in ("shared", "morphology_only", "expression_only")]
    s = specimen(0, 0, *zero)
    groups = {
        "shared": SHARED_STATES,
        "morphology_only": ("pleomorphism", "oedema"),
        "expression_only": EXPRESSION_STATES,
    }
    for name, states in groups.items():
        total = s.states[:, [STATES.index(state) for state in states]].sum(1)
        link = abs(np.corrcoef(total, s.phenotype)[0, 1])
        assert (link > 0.99) if name == kind else (link < 0.6)


SMALL_SECTIONS = {
    "visium": ("anatomy.side_um=600", "people.absent=0", "spots.pitch_um=56", "molecules.filler_genes=100"),
    "xenium": ("anatomy.side_um=600", "people.absent=0", "spots.margin_um=20"),
}


@pytest.mark.parametrize("platform", SMALL_SECTIONS)
def test_harder_worlds_count_less_and_their_counts_tell_composition_worse(platform):
    def seen(difficulty: str) -> tuple[float, float]:
        config = preset(platform, difficulty=difficulty, overrides=SMALL_SECTIONS[platform])
        sections = [Specimen(config, patient, 0) for patient in range(2)]
        counts = [s.table.X.toarray().sum(1) for s in sections]
        told = [explained(observed(s), s.table.obsm["truth_composition"], alpha=300.0) for s in sections]
        return float(np.mean([np.median(c) for c in counts])), float(np.mean(told))

    (many, well), (some, fairly), (few, badly) = (seen(name) for name in DIFFICULTIES)
    assert many > 1.5 * some > 1.5 * 1.2 * few
    assert well > fairly + 0.03
    assert fairly > badly + 0.02


def test_the_standard_difficulty_is_the_preset():
    assert preset("visium", difficulty="standard") == preset("visium")
