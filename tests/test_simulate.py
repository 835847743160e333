"""The simulator: bytes repeat, physics holds in the pixels, words match the truth, sections resume."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from scipy.ndimage import label

from triglyph.errors import ContractError, RecipeError
from triglyph.storage import file_digest
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.simulate.anatomy.tissue import Cells
from triglyph.tissue.simulate.cohort import simulate_section
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.molecules.programs import MARKERS
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.picture.nuclei import Canvas, draw_cells
from triglyph.tissue.simulate.picture.stain import patient_dye
from triglyph.tissue.simulate.presets import preset, preset_names
from triglyph.workflows.simulate import SCRATCH, simulate

TINY = preset("tiny")


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], SectionDraft]:
    folder = tmp_path_factory.mktemp("drafts")
    return {key: simulate_section(TINY, *key, folder / f"{key[0]}-{key[1]}.tif") for key in [(0, 0), (0, 1), (1, 0)]}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two patients, three sections, made in this process; tests work on copies."""
    return Cohort.open(simulate("tiny", patients=2, out=tmp_path_factory.mktemp("cohort") / "c", workers=1))


def fingerprint(draft: SectionDraft) -> list[object]:
    table = draft.table
    arrays = [table.X.data, table.X.indices, table.X.indptr, *(table.obsm[k] for k in sorted(table.obsm))]
    return [
        file_digest(draft.images[0].path),
        [np.asarray(a).tobytes() for a in arrays],
        table.obs.to_csv(),
        table.var.to_csv(),
        draft.source,
    ]


# ---- determinism


def test_the_same_seed_gives_the_same_bytes_whatever_came_before(drafts, tmp_path):
    again = simulate_section(TINY, 1, 0, tmp_path / "again.tif")
    assert fingerprint(again) == fingerprint(drafts[1, 0])


def test_another_seed_patient_or_section_gives_another_picture_and_other_counts(drafts, tmp_path):
    other = simulate_section(preset("tiny", seed=1), 0, 0, tmp_path / "other.tif")
    prints = [fingerprint(d) for d in (drafts[0, 0], drafts[0, 1], drafts[1, 0], other)]
    for part in (0, 1):
        assert len({str(p[part]) for p in prints}) == len(prints)


def test_one_and_two_workers_write_the_same_images_and_tables(cohort, tmp_path):
    pair = Cohort.open(simulate("tiny", patients=1, out=tmp_path / "two", workers=2))
    assert pair.ids == ["P01-S1", "P01-S2"]
    assert pair.manifest.equals(cohort.manifest.loc[pair.ids])
    for section in pair:
        alone = cohort[section.id]
        assert section.info == alone.info  # digests of image, counts, genes, centres
        assert section.captions == alone.captions
        for key in section.table.obsm:
            np.testing.assert_array_equal(section.table.obsm[key], alone.table.obsm[key])


# ---- what a draft holds


def test_counts_are_whole_numbers_and_never_negative(drafts):
    for draft in drafts.values():
        counts = draft.table.X
        assert counts.dtype.kind == "i"
        assert counts.min() >= 0
        assert (np.asarray(counts.sum(1)) > 0).all()


def test_symbols_are_unique_and_hold_the_markers_of_every_type(drafts):
    symbols = drafts[0, 0].table.var_names
    assert symbols.is_unique
    assert 400 <= len(symbols) <= 450
    for text in MARKERS.values():
        assert set(text.split()) <= set(symbols)
    assert {"EPCAM", "KRT8", "CD3E", "CD19", "COL1A1", "CD68", "PECAM1", "ADIPOQ"} <= set(symbols)


def test_spots_are_a_hexagonal_lattice_of_55_um_at_100_um_on_tissue(drafts):
    draft = drafts[0, 0]
    assert (draft.location_um, draft.pitch_um) == (55.0, 100.0)
    xy = draft.table.obsm["spatial"]
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    assert distance.min() == pytest.approx(100.0)
    row, column = draft.table.obs["array_row"].to_numpy(), draft.table.obs["array_col"].to_numpy()
    assert ((row + column) % 2 == 0).all()
    assert (xy > 27.5).all()
    assert (xy < TINY.anatomy.side_um - 27.5).all()


def test_the_truth_is_beside_the_data_and_its_columns_are_named(drafts):
    for draft in drafts.values():
        table = draft.table
        composition, cells = table.obsm["truth_composition"], table.obs["truth_cells"].to_numpy()
        assert draft.source["truth_composition"] == list(CELL_TYPES)
        np.testing.assert_allclose(composition.sum(1), cells > 0)
        whole = composition * cells[:, None]
        np.testing.assert_allclose(whole, np.round(whole), atol=1e-9)
        assert (np.array(DOMAINS)[table.obsm["truth_domains"].argmax(1)] == table.obs["label"]).all()


def test_sections_of_a_patient_share_block_stain_and_anatomy_but_no_counts(drafts):
    first, second, other = drafts[0, 0], drafts[0, 1], drafts[1, 0]
    assert first.block == second.block != other.block
    assert first.images[0].mpp == second.images[0].mpp != other.images[0].mpp

    def domains(draft: SectionDraft) -> dict[str, str]:
        return dict(zip(draft.table.obs_names, draft.table.obs["label"], strict=True))

    def agreement(a: SectionDraft, b: SectionDraft) -> float:
        one, two = domains(a), domains(b)
        both = sorted(set(one) & set(two))
        return float(np.mean([one[k] == two[k] for k in both]))

    assert agreement(first, second) > agreement(first, other) + 0.2


def test_patients_differ_in_shares_of_domains_and_every_share_is_positive():
    shares = np.array([person(TINY, p).shares() for p in range(20)])
    np.testing.assert_allclose(shares.sum(1), 1)
    assert shares.min() > 0.01
    assert shares.std(0).min() > 0.01


# ---- pixels


def test_openslide_reads_every_level_and_the_true_scale(drafts):
    for draft in drafts.values():
        image = draft.images[0]
        with openslide.OpenSlide(image.path) as slide:
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(image.mpp, rel=1e-6)
            assert slide.level_downsamples == pytest.approx([2.0**k for k in range(slide.level_count)])
            assert slide.level_count >= 3
            assert min(slide.dimensions) * image.mpp >= TINY.anatomy.side_um
        assert image.to_um.mpp == pytest.approx(image.mpp)
        assert image.mpp_source == "simulated"


@pytest.mark.parametrize("mpp", [0.25, 0.4831, 0.8])
@pytest.mark.parametrize("kind", [CELL_TYPES.index("T cell"), CELL_TYPES.index("tumour")])
def test_a_nucleus_has_its_size_in_um_at_any_scale(mpp, kind):
    long_um, short_um = 11.0, 7.0
    rng = np.random.default_rng(0)
    n = 25
    xy = (np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) + 0.5) * 30 + rng.uniform(-3, 3, (n, 2))
    cells = Cells(
        xy,
        np.full(n, kind),
        np.full(n, long_um),
        np.full(n, short_um),
        rng.uniform(0, 3.14, n),
        np.zeros((n, len(STATES))),
    )
    side = int(np.ceil(150 / mpp))
    canvas = Canvas.empty((side, side))
    draw_cells(canvas, cells, TINY.anatomy.nuclei, mpp=mpp, rng=rng)
    islands, number = label(canvas.cover > 127)
    assert number == n
    area_um2 = np.bincount(islands.ravel())[1:] * mpp**2
    assert area_um2.mean() == pytest.approx(np.pi / 4 * long_um * short_um, rel=0.04)
    rows, columns = np.nonzero(islands)
    for point in xy:
        mine = islands[int(point[1] / mpp), int(point[0] / mpp)]
        centre = np.array([columns[islands[rows, columns] == mine].mean(), rows[islands[rows, columns] == mine].mean()])
        np.testing.assert_allclose((centre + 0.5) * mpp, point, atol=0.6)


def test_cells_of_the_truth_are_where_the_pixels_are_dark_blue(drafts):
    draft = drafts[0, 0]
    image = draft.images[0]
    pixels = tifffile.imread(image.path).astype(float)
    centres = draft.table.obsm["spatial"]
    half = int(27.5 / image.mpp)
    red = []
    for x, y in centres / image.mpp:
        red.append(pixels[int(y) - half : int(y) + half, int(x) - half : int(x) + half, 0].mean())
    # Haematoxylin takes away red light, eosin hardly does.
    cells = draft.table.obs["truth_cells"].to_numpy()
    assert np.corrcoef(red, cells)[0, 1] < -0.6


def test_glass_is_white_fat_is_bright_and_tissue_is_pink_to_violet(drafts):
    draft = drafts[0, 0]
    pixels = tifffile.imread(draft.images[0].path).astype(float)
    assert pixels[:20, :20].mean() > 230
    labels = draft.table.obs["label"].to_numpy()
    half = 20

    def colour(domain: str) -> np.ndarray:
        xy = (draft.table.obsm["spatial"][labels == domain] / draft.images[0].mpp).astype(int)
        return np.mean([pixels[y - half : y + half, x - half : x + half].mean((0, 1)) for x, y in xy], axis=0)

    stroma, immune = colour("connective tissue"), colour("immune infiltrate")
    assert stroma[0] > stroma[2] > stroma[1]
    assert immune[2] > immune[0]
    if (labels == "adipose tissue").any():
        assert colour("adipose tissue").mean() > stroma.mean()


def test_patients_differ_in_stain_and_scale_within_the_stated_range():
    dyes = [patient_dye(TINY, p) for p in range(12)]
    low, high = TINY.stain.mpp
    assert all(low <= d.mpp <= high for d in dyes)
    assert len({d.mpp for d in dyes}) == 12
    assert np.std([d.matrix for d in dyes], axis=0).min() > 0.005


# ---- presets and the workflow


def test_presets_are_frozen_and_an_unknown_one_is_refused():
    assert {"demo", "tiny"} <= set(preset_names())
    with pytest.raises(ValueError, match="frozen"):
        TINY.seed = 3
    with pytest.raises(RecipeError, match="no preset"):
        preset("large")


def test_presets_are_those_that_the_docs_describe_with_the_same_digests():
    page = (Path(__file__).parents[1] / "docs" / "simulator.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([\w-]+)` \|.*\| `([0-9a-f]{16})` \|$", page, flags=re.MULTILINE))
    assert stated == {name: preset(name).digest() for name in preset_names()}


def test_the_demo_preset_makes_eight_sections_of_six_patients():
    demo = preset("demo")
    assert [demo.sections_of(p) for p in range(6)] == [2, 1, 1, 2, 1, 1]


def written(cohort: Cohort) -> dict[str, int]:
    return {i: (cohort.folder(i) / "section.json").stat().st_mtime_ns for i in cohort.ids}


def test_finished_sections_are_kept_and_what_is_missing_is_made(cohort, tmp_path):
    path = tmp_path / "c"
    shutil.copytree(cohort.path, path)
    before = written(Cohort.open(path))
    # A killed run lacks a section and leaves a scratch image.
    shutil.rmtree(path / "sections" / "P01-S2")
    (path / "sections.csv").unlink()
    (path / SCRATCH).mkdir()
    (path / SCRATCH / "P01-S2.tif").write_bytes(b"half an image")
    simulate("tiny", patients=2, out=path, workers=1)
    again = Cohort.open(path)
    after = written(again)
    assert again.digest() == cohort.digest()
    assert [i for i in after if after[i] != before[i]] == ["P01-S2"]
    assert not (path / SCRATCH).exists()


def test_a_finished_cohort_is_left_as_it_is_also_when_fewer_patients_are_asked_for(cohort, tmp_path):
    path = tmp_path / "c"
    shutil.copytree(cohort.path, path)
    before = written(Cohort.open(path))
    simulate("tiny", patients=1, out=path)
    assert written(Cohort.open(path)) == before


@pytest.mark.parametrize("options", [{"seed": 1}, {"preset": "demo"}])
def test_two_worlds_do_not_mix_in_one_cohort(cohort, options):
    before = written(cohort)
    with pytest.raises(ContractError, match="is not of preset"):
        simulate(**{"preset": "tiny", "patients": 3, "out": cohort.path, "workers": 1, **options})
    assert written(Cohort.open(cohort.path)) == before


@pytest.mark.parametrize("options", [{"patients": 0}, {"workers": 0}, {"preset": "none"}])
def test_impossible_options_are_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(RecipeError):
        simulate(**{"preset": "tiny", "out": tmp_path / "c", **options})
    assert not (tmp_path / "c").exists()


def test_an_occupied_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ContractError):
        simulate("tiny", patients=1, out=tmp_path, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
