"""Simulated sections in the vendors' layouts: our readers and spatialdata-io read them back, and nothing is lost."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from support import SHARED, needs_shared
from triglyph.errors import RecipeError, StorageError
from triglyph.storage import file_digest
from triglyph.tissue.checks import check_draft
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pixels import open_pixels
from triglyph.tissue.readers.base import ReadOptions, find_reader
from triglyph.tissue.readers.scales import file_scale
from triglyph.tissue.readers.visium import mpp_by_spot_diameter
from triglyph.tissue.simulate.knobs.molecules import Spots
from triglyph.tissue.simulate.molecules.bins import bin_table
from triglyph.tissue.simulate.molecules.transcripts import CONTROLS, GENE, draw_transcripts, panel
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.picture.stain import patient_dye
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.vendors import write_vendor
from triglyph.tissue.simulate.vendors.st import st_name
from triglyph.tissue.simulate.vendors.visium import COLUMNS, ROWS, spot_barcodes
from triglyph.tissue.simulate.vendors.xenium_cells import UNASSIGNED
from triglyph.tissue.simulate.vendors.xenium_frame import PIXEL_UM, InstrumentFrame

SPOTS = {
    "st": Spots(platform="st", diameter_um=100, pitch_um=200, lattice="square", margin_um=10),
    "visium": Spots(platform="visium", margin_um=10),
    "visium-hd": Spots(platform="visium-hd", diameter_um=16, pitch_um=16, lattice="square", margin_um=40),
    "xenium": Spots(platform="xenium", diameter_um=40, pitch_um=40, lattice="square", margin_um=40),
}


def specimen(platform: str, *, side_um: float = 460.0, **parts: dict[str, Any]) -> Specimen:
    """The first section of a small world; `parts` change its knobs."""
    base = preset("tiny")
    side_um = max(side_um, 820.0) if platform == "st" else side_um  # a handful of spots
    parts = {"anatomy": {}, **parts}
    parts["anatomy"] = {"side_um": side_um, **parts["anatomy"]}
    changed = {name: getattr(base, name).model_copy(update=update) for name, update in parts.items()}
    return Specimen(base.model_copy(update={"spots": SPOTS[platform], **changed}), 0, 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Specimen, Path]]:
    """One section of each platform, and its folder."""
    root = tmp_path_factory.mktemp("vendors")
    return {name: (one := specimen(name), write_vendor(one, root / name / "outs")) for name in SPOTS}


def read(platform: str, folder: Path, tmp_path: Path, **options: Any) -> SectionDraft:
    reader = find_reader(platform)
    (tmp_path / "scratch").mkdir(exist_ok=True)
    said = ReadOptions(scratch=tmp_path / "scratch", **options)
    (found,) = reader.discover(folder, said)
    return check_draft(reader.read(found, said), where=folder)


def same_counts(draft: SectionDraft, one: Specimen) -> np.ndarray:
    """Check that the draft's counts are the specimen's; the specimen's row of each of its rows."""
    table = one.table
    offset = 1 if draft.platform == "st" else 0
    places = {place: i for i, place in enumerate(zip(table.obs.array_row, table.obs.array_col, strict=True))}
    obs = draft.table.obs
    rows = np.array([places[r - offset, c - offset] for r, c in zip(obs.array_row, obs.array_col, strict=True)])
    assert sorted(rows) == list(range(table.n_obs))
    assert list(draft.table.var_names) == list(table.var_names)
    assert (table.X[rows] != draft.table.X).nnz == 0
    return rows


def h5(path: Path) -> Any:
    """Counts (barcodes, features) of a 10x matrix, with everything that is no gene."""
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that occur twice
        return sc.read_10x_h5(path, gex_only=False)


# ---- whole folders


@pytest.mark.parametrize("platform", list(SPOTS))
def test_the_same_specimen_writes_the_same_bytes(platform: str, tmp_path: Path) -> None:
    small = {"side_um": 260.0}
    folders = [write_vendor(specimen(platform, **small), tmp_path / name / "outs") for name in ("a", "b")]
    files = [{p.relative_to(f).as_posix(): file_digest(p) for p in f.rglob("*") if p.is_file()} for f in folders]
    assert len(files[0]) >= 4
    assert files[0] == files[1]


def test_a_folder_that_is_there_is_left_alone_and_nothing_partial_stays(tmp_path: Path) -> None:
    folder = write_vendor(specimen("st", side_um=260.0), tmp_path / "outs")
    with pytest.raises(StorageError, match="already written"):
        write_vendor(specimen("st", side_um=260.0), folder)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["outs"]


def test_a_lattice_that_is_not_the_platforms_is_refused(tmp_path: Path) -> None:
    one = specimen("visium")
    for platform in ("st", "visium"):
        other = "hexagonal" if platform == "st" else "square"
        # Nothing in these layouts could tell a reader of another pitch.
        for change in ({"lattice": other}, {"pitch_um": 150.0}):
            spots = SPOTS[platform].model_copy(update=change)
            with pytest.raises(RecipeError, match="array"):
                write_vendor(Specimen(one.config.model_copy(update={"spots": spots}), 0, 0), tmp_path / platform)


# ---- legacy ST


def test_our_st_reader_gives_back_counts_centres_scale_patient_and_labels(written: Any, tmp_path: Path) -> None:
    one, folder = written["st"]
    draft = read("st", folder, tmp_path)
    rows, mpp = same_counts(draft, one), patient_dye(one.config, 0).mpp
    assert draft.images[0].mpp == pytest.approx(mpp, rel=1e-4)
    assert np.abs(draft.table.obsm["spatial"] - one.table.obsm["spatial"][rows]).max() < 0.1
    assert (draft.section_id, draft.patient) == ("A1", "A")
    assert list(draft.table.obs["label"]) == list(one.table.obs["label"].iloc[rows])


def test_st_sections_are_named_by_patient_and_number() -> None:
    assert [st_name(p, s) for p, s in ((0, 0), (0, 1), (25, 0), (26, 2), (51, 0), (52, 0))] == [
        "A1", "A2", "Z1", "AA3", "AZ1", "BA1",
    ]  # fmt: skip
    assert len({st_name(p, 0) for p in range(800)}) == 800


@needs_shared
def test_st_files_have_the_columns_of_real_ones(written: Any) -> None:
    _, folder = written["st"]
    real = SHARED / "her2st"  # type: ignore[operator]
    for ours, theirs in (
        ("spots/A1_selection.tsv", "spots/A1_selection.tsv"),
        ("labels/A1_labeled_coordinates.tsv", "labels/A1_labeled_coordinates.tsv"),
    ):
        assert list(pd.read_csv(folder / ours, sep="\t")) == list(pd.read_csv(real / theirs, sep="\t"))
    ours, theirs = (pd.read_csv(f / "counts" / "A1.tsv.gz", sep="\t", index_col=0, nrows=3) for f in (folder, real))
    assert all(re.fullmatch(r"\d+x\d+", str(i)) for t in (ours, theirs) for i in t.index)
    assert ours.index.name == theirs.index.name


def test_a_registration_error_moves_st_spots_in_the_image_and_nowhere_in_the_array(tmp_path: Path) -> None:
    one = specimen("st", people={"registration_um": 30.0, "registration_bend_um": 4.0})
    folder = write_vendor(one, tmp_path / "outs")
    spots = pd.read_csv(folder / "spots" / "A1_selection.tsv", sep="\t")
    mpp = patient_dye(one.config, 0).mpp
    at = spots[["pixel_x", "pixel_y"]].to_numpy() * mpp
    assert np.abs(at - one.table.obsm["spatial"]).max() < 0.01
    assert np.abs(at - one.table.obsm["truth_spatial"]).max() > 5
    assert (np.round(spots.new_x) == spots.x).all()
    assert (spots.x == one.table.obs["array_col"].to_numpy() + 1).all()


# ---- Visium


def test_our_visium_reader_gives_back_counts_centres_and_scale(written: Any, tmp_path: Path) -> None:
    one, folder = written["visium"]
    draft = read("visium", folder, tmp_path, patient="P", image=folder / "tissue_image.tif")
    rows, mpp = same_counts(draft, one), patient_dye(one.config, 0).mpp
    assert draft.images[0].mpp == pytest.approx(mpp, rel=5e-3)
    assert {i.role for i in draft.images} == {"full", "preview"}
    # Positions are whole pixels, as Space Ranger's are.
    assert np.abs(draft.table.obsm["spatial"] - one.table.obsm["spatial"][rows]).max() < mpp + 5e-3 * 460


def test_the_stated_spot_diameter_is_no_ruler(written: Any) -> None:
    one, folder = written["visium"]
    factors = json.loads((folder / "spatial" / "scalefactors_json.json").read_text())
    wrong, mpp = mpp_by_spot_diameter(factors["spot_diameter_fullres"]), patient_dye(one.config, 0).mpp
    assert wrong / mpp == pytest.approx(55 / 65)


def test_the_raw_visium_matrix_adds_spots_off_tissue_that_hold_little(written: Any) -> None:
    one, folder = written["visium"]
    raw, filtered = (h5(folder / f"{kind}_feature_bc_matrix.h5") for kind in ("raw", "filtered"))
    positions = pd.read_csv(folder / "spatial" / "tissue_positions.csv", index_col=0)
    under = positions.index[positions.in_tissue == 1]
    # Barcodes stand in their own order, as Space Ranger has them, and not in that of the array.
    assert list(raw.obs_names) == sorted(positions.index)
    assert list(filtered.obs_names) == sorted(under)
    assert (raw[filtered.obs_names].X != filtered.X).nnz == 0
    assert filtered.X.sum() == one.table.X.sum()
    off = raw[positions.index[positions.in_tissue == 0]]
    assert off.n_obs
    assert 0 < off.X.sum(1).mean() < 0.1 * filtered.X.sum(1).mean()


def test_barcodes_have_the_real_form_and_name_one_place_each() -> None:
    rows, columns = (axis.ravel() for axis in np.mgrid[0:ROWS, 0:COLUMNS])
    barcodes = spot_barcodes(rows, columns)
    assert len(set(barcodes)) == ROWS * COLUMNS
    assert all(re.fullmatch(r"[ACGT]{16}-1", b) for b in barcodes)
    assert (spot_barcodes(rows[:5], columns[:5]) == barcodes[:5]).all()


def test_spatialdata_io_reads_visium(written: Any) -> None:
    from spatialdata_io import visium

    one, folder = written["visium"]
    # `outs` names no sample, so the reader asks for one.
    found = visium(folder, dataset_id="P01-S1", fullres_image_file="tissue_image.tif")
    table = found["table"]
    assert table.X.sum() == one.table.X.sum()
    assert table.shape == one.table.shape
    assert "P01-S1_full_image" in found.images
    at = table.obsm["spatial"] * patient_dye(one.config, 0).mpp
    stated = {
        tuple(p): c
        for p, c in zip(one.table.obs[["array_row", "array_col"]].to_numpy(), one.table.obsm["spatial"], strict=True)
    }
    truth = np.array([stated[tuple(p)] for p in table.obs[["array_row", "array_col"]].to_numpy()])
    assert np.abs(at - truth).max() < 0.5


# ---- Visium HD


def test_every_bin_size_holds_every_molecule_of_the_capture_area_once(written: Any) -> None:
    one, folder = written["visium-hd"]
    molecules = draw_transcripts(one)
    margin = one.config.spots.margin_um
    last = margin + 2 * ((one.config.anatomy.side_um - 2 * margin) // 2)
    inside = ((molecules.xy_um >= margin) & (molecules.xy_um < last)).all(1).sum()
    outs = folder / "binned_outputs"
    raw = {side: h5(outs / f"square_{side:03d}um" / "raw_feature_bc_matrix.h5") for side in (2, 8, 16)}
    assert {table.X.sum() for table in raw.values()} == {float(inside)}
    fine, coarse = raw[2], raw[16]
    place = np.array([[int(v) for v in name.removesuffix("-1").split("_")[2:]] for name in fine.obs_names]) // 8
    names = np.array([f"s_016um_{r:05d}_{c:05d}-1" for r, c in place])
    sums = pd.Series(np.asarray(fine.X.sum(1)).ravel()).groupby(names).sum()
    assert (sums.loc[coarse.obs_names].to_numpy() == np.asarray(coarse.X.sum(1)).ravel()).all()


def test_the_specimens_locations_are_bins_of_the_folder(written: Any, tmp_path: Path) -> None:
    one, folder = written["visium-hd"]
    draft = read("visium", folder / "binned_outputs" / "square_016um", tmp_path, patient="P")
    counts, _ = bin_table(one)
    assert (draft.platform, draft.location_um, draft.location_shape) == ("visium-hd", 16, "square")
    mpp = patient_dye(one.config, 0).mpp
    found = {tuple(np.round(xy, 2)): i for i, xy in enumerate(draft.table.obsm["spatial"])}
    rows = [found[tuple(np.round(xy, 2))] for xy in one.centres_um]
    assert (draft.table.X[rows] != counts).nnz == 0
    assert len(found) - len(rows) <= 2 * 24  # what is left at the far edge
    assert draft.images[0].mpp > mpp * 0.99


def test_spatialdata_io_reads_visium_hd_without_being_told_anything(written: Any) -> None:
    from spatialdata_io import visium_hd

    one, folder = written["visium-hd"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", message="(Variable|Observation) names are not unique|Converting|.*categorical"
        )
        found = visium_hd(folder)
    assert {"square_002um", "square_008um", "square_016um"} <= set(found.tables)
    assert "_full_image" in found.images
    mpp = patient_dye(one.config, 0).mpp
    for side in (2, 8, 16):
        table = found.tables[f"square_{side:03d}um"]
        filtered = h5(folder / "binned_outputs" / f"square_{side:03d}um" / "filtered_feature_bc_matrix.h5")
        assert table.X.sum() == filtered.X.sum() > 0
        assert (table.obs["in_tissue"] == 1).all()
        centres = table.obs[["array_col", "array_row"]].to_numpy() * side + side / 2 + one.config.spots.margin_um
        assert np.abs(table.obsm["spatial"] * mpp - centres).max() < 1e-6
        areas = found.shapes[f"_square_{side:03d}um"].area
        assert np.allclose(areas * mpp**2, side**2)


def test_the_feature_slices_hold_the_squares_and_where_they_lie(written: Any) -> None:
    _, folder = written["visium-hd"]
    raw = h5(folder / "binned_outputs" / "square_002um" / "raw_feature_bc_matrix.h5")
    positions = pd.read_parquet(folder / "binned_outputs" / "square_002um" / "spatial" / "tissue_positions.parquet")
    with h5py.File(folder / "feature_slice.h5") as file:
        metadata = json.loads(file.attrs["metadata_json"])
        total = {int(gene): int(part["data"][:].sum()) for gene, part in file["feature_slices"].items()}
    by_gene = np.asarray(raw.X.sum(0)).ravel()
    assert total == {int(g): int(by_gene[g]) for g in np.flatnonzero(by_gene)}
    to_image = np.array(metadata["transform_matrices"]["spot_colrow_to_microscope_colrow"])
    squares = np.column_stack([positions.array_col, positions.array_row, np.ones(len(positions))])
    pixels = (squares @ to_image.T)[:, :2]
    assert np.allclose(pixels, positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]], atol=1e-6)
    back = np.array(metadata["transform_matrices"]["microscope_colrow_to_spot_colrow"])
    assert np.allclose(back @ to_image, np.eye(3))


# ---- Xenium


def test_transcripts_are_those_of_cells_and_of_no_cell(written: Any) -> None:
    one, folder = written["xenium"]
    molecules = draw_transcripts(one)
    transcripts = pd.read_parquet(folder / "transcripts.parquet")
    matrix, cells = h5(folder / "cell_feature_matrix.h5"), pd.read_parquet(folder / "cells.parquet")
    assert len(transcripts) == len(molecules)
    good = transcripts[transcripts.qv >= 20]
    free = (good.cell_id == UNASSIGNED).sum()
    assert 0 < free < 0.3 * len(good)
    assert matrix.X.sum() + free == len(good)
    assert cells.total_counts.sum() == matrix.X.sum()
    parts = cells.filter(regex="_counts$").drop(columns="total_counts").sum(axis=1)
    assert (parts == cells.total_counts).all()
    assigned = good[good.cell_id != UNASSIGNED]
    one_by_one = assigned.groupby(["cell_id", "feature_name"]).size()
    for (cell, feature), number in one_by_one.sample(50, random_state=0).items():
        assert matrix[cell, feature].X.sum() == number


def test_features_are_typed_and_the_panel_says_which_are_custom(written: Any) -> None:
    one, folder = written["xenium"]
    matrix = h5(folder / "cell_feature_matrix.h5")
    core, addon = panel(one.config, 0)
    kinds = matrix.var["feature_types"].value_counts()
    assert kinds["Gene Expression"] == core.sum() + addon.sum()
    assert set(kinds.index) == {
        "Gene Expression", "Negative Control Probe", "Negative Control Codeword", "Unassigned Codeword",
    }  # fmt: skip
    targets = json.loads((folder / "gene_panel.json").read_text())["payload"]["targets"]
    assert [t["type"]["data"]["name"] for t in targets] == list(matrix.var_names)
    assert sum(t["source"]["category"] == "predesigned" for t in targets) == core.sum()
    experiment = json.loads((folder / "experiment.xenium").read_text())
    assert experiment["pixel_size"] == PIXEL_UM
    assert experiment["num_cells"] == matrix.n_obs == len(one.tissue.cells)


def test_every_molecule_is_written_under_the_name_of_its_gene_or_control(written: Any) -> None:
    one, folder = written["xenium"]
    molecules = draw_transcripts(one)
    names = np.array(molecules.symbols, dtype=object)[np.where(molecules.kind == GENE, molecules.gene, 0)]
    for kind, controls in CONTROLS.items():
        mine = molecules.kind == kind
        names[mine] = np.array(controls, dtype=object)[molecules.gene[mine]]
    transcripts = pd.read_parquet(folder / "transcripts.parquet")
    assert transcripts.feature_name.value_counts().to_dict() == pd.Series(names).value_counts().to_dict()
    assert (transcripts.is_gene == transcripts.codeword_category.str.endswith("_gene")).all()
    assert transcripts.is_gene.sum() == (molecules.kind == GENE).sum()


def test_the_add_on_panel_is_in_the_folder_of_a_patient_that_has_it(tmp_path: Path) -> None:
    genes = []
    for share in (0.0, 1.0):
        one = specimen("xenium", side_um=260.0, transcripts={"addon_share": share})
        folder = write_vendor(one, tmp_path / f"{share}" / "outs")
        genes.append(json.loads((folder / "experiment.xenium").read_text())["panel_num_targets_custom"])
    assert genes == [0, one.config.transcripts.addon_panel]


def test_spatialdata_io_reads_xenium_without_being_told_anything(written: Any) -> None:
    from spatialdata_io import xenium

    one, folder = written["xenium"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Converting|.*categorical")
        found = xenium(folder)
    assert set(found.images) == {"he_image", "morphology_focus"}
    assert set(found.labels) == {"cell_labels", "nucleus_labels"}
    assert set(found.shapes) == {"cell_boundaries", "nucleus_boundaries"}
    table, cells = found["table"], pd.read_parquet(folder / "cells.parquet")
    assert table.n_obs == len(one.tissue.cells)
    assert table.X.sum() == cells.transcript_counts.sum()
    assert len(found["transcripts"]) == len(pd.read_parquet(folder / "transcripts.parquet", columns=["qv"]))
    assert np.allclose(found.shapes["cell_boundaries"].area, cells.cell_area, rtol=1e-3)
    assert found.shapes["cell_boundaries"].is_valid.all()
    inside = found.shapes["cell_boundaries"].buffer(1e-3).to_numpy()
    assert all(
        outer.contains(inner) for outer, inner in zip(inside, found.shapes["nucleus_boundaries"].geometry, strict=True)
    )


def test_a_transcript_belongs_to_the_cell_whose_label_it_lies_in(written: Any) -> None:
    import zarr

    one, folder = written["xenium"]
    cells = pd.read_parquet(folder / "cells.parquet")
    store = zarr.storage.ZipStore(folder / "cells.zarr.zip", read_only=True)
    mask = zarr.open_group(store, mode="r")["masks/1"][:]
    assert set(np.unique(mask)) - {0} <= set(range(1, len(cells) + 1))
    transcripts = pd.read_parquet(folder / "transcripts.parquet")
    place = transcripts[["y_location", "x_location"]].to_numpy(dtype=np.float64)
    rows, columns = np.floor(place / PIXEL_UM).astype(int).T
    names = np.append(cells.cell_id.to_numpy(), UNASSIGNED)
    assert (names[mask[rows, columns].astype(int) - 1] == transcripts.cell_id).all()
    # What the simulator says in memory differs at borders alone.
    free = (draw_transcripts(one).cell < 0).mean()
    assert (transcripts.cell_id == UNASSIGNED).mean() == pytest.approx(free, abs=0.05)


def nuclei_in_dna(folder: Path, one: Specimen, matrix: np.ndarray) -> float:
    """Mean grey level of the DNA picture where `matrix` puts the H&E's nuclei, relative to the whole picture's."""
    import tifffile

    dna = tifffile.imread(folder / "morphology_focus" / "morphology_focus_0000.ome.tif", key=0)
    mpp = patient_dye(one.config, 0).mpp
    at = Affine.from_matrix(matrix)(one.tissue.cells.xy_um / mpp)
    columns, rows = np.clip(np.floor(at).astype(int), 0, np.array(dna.shape)[::-1] - 1).T
    return float(dna[rows, columns].mean() / dna.mean())


def test_the_alignment_puts_nuclei_of_the_h_and_e_on_the_dna_picture(written: Any) -> None:
    one, folder = written["xenium"]
    matrix = pd.read_csv(folder / "P01-S1_he_imagealignment.csv", header=None).to_numpy()
    assert matrix.shape == (3, 3)
    assert np.allclose(matrix[2], [0, 0, 1])
    turn = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
    assert 0.05 < abs(turn) < 20
    mpp = patient_dye(one.config, 0).mpp
    assert np.hypot(*matrix[:2, 0]) == pytest.approx(mpp / PIXEL_UM)
    right = nuclei_in_dna(folder, one, matrix)
    unturned = np.diag([mpp / PIXEL_UM, mpp / PIXEL_UM, 1.0])
    assert right > 3
    assert nuclei_in_dna(folder, one, unturned) < 0.5 * right


def test_the_h_and_e_is_the_sections_own_and_states_its_scale(written: Any) -> None:
    one, folder = written["xenium"]
    path = folder / "P01-S1_he_image.ome.tif"
    pixels, dye = he_pixels(one)
    image = open_pixels(path)
    assert file_scale(path).mpp == pytest.approx(dye.mpp)  # type: ignore[union-attr]
    assert (image.levels[0].width, image.levels[0].height) == pixels.shape[1::-1]
    region = image.read(0, 100, 150, 300, 200).astype(int)
    assert np.abs(region - pixels[150:350, 100:400]).mean() < 6
    image.close()


def fit(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(3, 2) affine map by least squares."""
    return np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), target, rcond=None)[0]


def test_landmarks_lie_within_their_stated_error_and_know_the_registration_error(tmp_path: Path) -> None:
    error_um, shift_um = 2.0, 25.0
    gaps, found, true = [], [], []
    for section in range(6):
        one = specimen("xenium", transcripts={"landmark_um": error_um}, people={"registration_um": shift_um})
        one = Specimen(one.config, 0, section)
        frame, mpp = InstrumentFrame(one), patient_dye(one.config, 0).mpp
        points = frame.keypoints(mpp)
        assert 10 <= len(points) <= 16
        fixed = points[["fixedX", "fixedY"]].to_numpy() * PIXEL_UM
        moved = points[["alignmentX", "alignmentY"]].to_numpy() * mpp
        gaps.append(fixed - frame.place(moved))
        stated = Affine.from_matrix(frame.alignment(mpp))(moved / mpp) * PIXEL_UM
        found.append((fixed - stated).mean(0))
        shift = registration_error(one.config, 0, section, moved)
        true.append(frame.stated.matrix[:2, :2] @ shift.mean(0))
    rms = np.sqrt((np.concatenate(gaps) ** 2).sum(1).mean())
    assert rms == pytest.approx(error_um, rel=0.2)
    assert np.abs(np.array(found) - np.array(true)).max() < 3 * error_um / np.sqrt(10)
    assert np.sqrt((np.array(true) ** 2).sum(1).mean()) > 3 * error_um


def test_what_xenium_states_holds_the_registration_error(tmp_path: Path) -> None:
    one = specimen("xenium", side_um=300.0, people={"registration_um": 20.0, "registration_bend_um": 3.0})
    folder = write_vendor(one, tmp_path / "outs")
    mpp = patient_dye(one.config, 0).mpp
    matrix = pd.read_csv(folder / "P01-S1_he_imagealignment.csv", header=None).to_numpy()
    cells = pd.read_parquet(folder / "cells.parquet")
    nuclei = pd.read_parquet(folder / "nucleus_boundaries.parquet")
    centres = nuclei.groupby("label_id")[["vertex_x", "vertex_y"]].agg(lambda v: v.iloc[:-1].mean()).to_numpy()
    on_image = Affine.from_matrix(matrix).inverse()(centres / PIXEL_UM) * mpp
    true = one.tissue.cells.xy_um
    error = registration_error(one.config, 0, 0, true)
    assert len(cells) == len(true)
    assert np.abs(error).max() > 3
    assert np.abs(on_image - true - error).max() < 0.05


def test_transcripts_stand_in_the_order_of_their_place(written: Any) -> None:
    _, folder = written["xenium"]
    transcripts = pd.read_parquet(folder / "transcripts.parquet")
    assert (np.diff(transcripts.y_location) >= 0).all()
    assert transcripts.transcript_id.is_unique
    size = Image.open(folder / "morphology_focus" / "morphology_focus_0000.ome.tif").size
    assert transcripts[["x_location", "y_location"]].min().min() >= 0
    assert (transcripts[["x_location", "y_location"]].max().to_numpy() < np.array(size) * PIXEL_UM).all()
