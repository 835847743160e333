"""Readers: what they find in small folders whose truth is known, and in real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support import SHARED, needs_shared
from triglyph.errors import RecipeError, ScaleError
from triglyph.tissue.checks import check_draft
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.readers.base import Notes, ReadOptions, check_options, find_reader, platforms
from triglyph.tissue.readers.counts import Counts, one_column_per_symbol
from triglyph.tissue.readers.hest_patches import Patches, read_patches_h5, write_patches_h5
from triglyph.tissue.readers.scales import file_scale, fit_lattice, nearest_pitch, settle_scale
from triglyph.tissue.readers.visium import mpp_by_spot_diameter
from triglyph.units import Mpp
from vendor_layouts import (
    GENES,
    IDS,
    counts,
    fullres_size,
    hest_folder,
    picture,
    st_folder,
    table,
    visium_folder,
    write_10x_h5,
    write_json,
)


def draft(platform: str, source: Path, tmp_path: Path, section: str | None = None, **options: object) -> SectionDraft:
    """The first (or the named) section of `source`, checked."""
    reader = find_reader(platform)
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    said = ReadOptions(scratch=scratch, **options)  # type: ignore[arg-type]
    check_options(reader, said)
    found = {s.section_id: s for s in reader.discover(source, said)}
    return check_draft(reader.read(found[section or min(found)], said), where=source)


# ---- the registry


def test_the_four_platforms_are_found_by_name() -> None:
    assert {"st", "visium", "hest", "anndata"} <= set(platforms())
    assert all(find_reader(name).platform == name for name in ("st", "visium", "hest", "anndata"))


def test_an_option_that_a_reader_would_ignore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--spatial-unit") as error:
        check_options(find_reader("st"), ReadOptions(scratch=tmp_path, spatial_unit="px"))
    assert "--patient-pattern" in error.value.mend


# ---- scales


@settings(max_examples=60, deadline=None)
@given(
    mpp=st.floats(0.1, 20),
    stretch=st.floats(0.98, 1.02),
    angle=st.floats(0, 6.3),
    flip=st.booleans(),
    n=st.integers(4, 9),
)
def test_the_lattice_fit_recovers_any_scale_rotation_and_flip(
    mpp: float, stretch: float, angle: float, flip: bool, n: int
) -> None:
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) * 200.0
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * ([-1, 1] if flip else [1, 1])
    pixels = grid / [mpp, mpp * stretch] @ turn + 123.4
    fit = fit_lattice(grid, pixels, pitch_um=200, where="here")
    assert (fit.mpp_x, fit.mpp_y) == pytest.approx((mpp, mpp * stretch), rel=1e-6)
    assert fit.mpp == pytest.approx(mpp * (1 + stretch) / 2, rel=1e-6)
    assert fit.residual_um < 1e-6 * 200


def test_a_scale_that_is_stated_twice_must_agree_and_shows_both_numbers() -> None:
    from triglyph.tissue.readers.scales import Scale

    one, close, far = Scale(Mpp(0.5), "array"), Scale(Mpp(0.505), "TIFF"), Scale(Mpp(0.52), "TIFF")
    assert settle_scale([one, close], given=None, where="x") == one
    with pytest.raises(ScaleError, match=r"0\.5000 µm/px \(array\) and 0\.5200 µm/px \(TIFF\)"):
        settle_scale([one, far], given=None, where="x")
    assert settle_scale([one, far], given=0.52, where="x").mpp == 0.52  # the user settles it
    with pytest.raises(ScaleError, match=r"0\.2500 µm/px \(--mpp\)"):
        settle_scale([one, far], given=0.25, where="x")
    assert settle_scale([], given=0.25, where="x").source == "--mpp"


@pytest.mark.parametrize(("unit", "per_unit"), [(3, 1e4), (2, 25400.0)])
def test_a_tiff_states_its_scale_per_centimetre_or_inch(tmp_path: Path, unit: int, per_unit: float) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(64, 64), resolution=(per_unit / 0.44, per_unit / 0.44), resolutionunit=unit)
    found = file_scale(path)
    assert found is not None
    assert found.mpp == pytest.approx(0.44, rel=1e-4)


def test_a_print_resolution_is_no_microscope_scale(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(64, 64), resolution=(300, 300), resolutionunit=2)
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.jpg", dpi=(25400, 25400))
    assert file_scale(tmp_path / "a.tif") is None
    assert file_scale(tmp_path / "a.jpg") is None


def test_ome_and_aperio_headers_state_the_scale(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        picture(64, 64),
        photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": 260.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.26},
    )
    description = "Aperio Image Library\n64x64 |AppMag = 40|MPP = 0.2520"
    tifffile.imwrite(tmp_path / "b.tif", picture(64, 64), description=description, metadata=None)
    scales = [file_scale(tmp_path / name) for name in ("a.ome.tif", "b.tif")]
    assert [s and round(s.mpp, 4) for s in scales] == [0.26, 0.252]


def test_the_nearest_pitch_is_that_of_the_lattice() -> None:
    assert nearest_pitch(table(6, pitch=37.0).obsm["spatial"]) == pytest.approx(37.0)


# ---- genes


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.sampled_from("abcde"), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_summing_columns_of_one_symbol_conserves_counts_and_reports_them(names: list[str], seed: int) -> None:
    matrix = np.random.default_rng(seed).poisson(1.0, (4, len(names)))
    ids = np.array([f"id{i}" for i in range(len(names))], dtype=object)
    notes = Notes()
    given_ = Counts(sp.csr_matrix(matrix), np.arange(4).astype(object), np.array(names, dtype=object), ids)
    out = one_column_per_symbol(given_, notes)
    assert list(out.symbols) == list(dict.fromkeys(names))
    for j, symbol in enumerate(out.symbols):
        columns = [i for i, name in enumerate(names) if name == symbol]
        np.testing.assert_array_equal(out.matrix.toarray()[:, j], matrix[:, columns].sum(axis=1))
        richest = max(columns, key=lambda i: (matrix[:, i].sum(), -i))
        assert out.ensembl_ids[j] == f"id{richest}"
    assert bool(notes.lines) == (len(set(names)) < len(names))


# ---- st


def test_st_joins_counts_with_positions_whatever_their_order(tmp_path: Path) -> None:
    source = st_folder(tmp_path / "st", mpp=5.0)
    found = draft("st", source, tmp_path)
    spots = pd.read_csv(source / "spots" / "C2_selection.tsv", sep="\t").set_index(["x", "y"])
    raw = pd.read_csv(source / "counts" / "C2.tsv.gz", sep="\t", index_col=0)
    for barcode, centre in zip(found.table.obs_names, found.table.obsm["spatial"], strict=True):
        row = spots.loc[tuple(int(v) for v in barcode.split("x"))]
        assert centre == pytest.approx([row.pixel_x * 5.0, row.pixel_y * 5.0])
    np.testing.assert_array_equal(found.table.X.toarray(), raw.to_numpy())
    assert (found.patient, found.block, found.pitch_um, found.location_um) == ("C", "C", 200.0, 100.0)
    assert found.images[0].mpp == pytest.approx(5.0)
    assert "array pitch 200 µm" in found.images[0].mpp_source


def test_st_labels_are_joined_on_rounded_positions_and_undetermined_is_no_class(tmp_path: Path) -> None:
    found = draft("st", st_folder(tmp_path / "st"), tmp_path)
    want = ["invasive cancer" if int(b.split("x")[0]) < 5 else "" for b in found.table.obs_names]
    assert list(found.table.obs["label"]) == want
    assert any("undetermined" in note for note in found.source["notes"])


def test_st_without_an_image_is_expression_only(tmp_path: Path) -> None:
    found = draft("st", st_folder(tmp_path / "st", images=False, labels=False), tmp_path)
    assert found.images == []
    assert nearest_pitch(found.table.obsm["spatial"]) == pytest.approx(190, abs=15)  # jittered lattice of 200 µm


def test_st_makes_a_pyramid_of_a_jpeg_once_and_says_so(tmp_path: Path) -> None:
    source = st_folder(tmp_path / "st")
    found = draft("st", source, tmp_path)
    assert found.images[0].path.parent == tmp_path / "scratch"
    assert "pyramid" in " ".join(found.source["notes"])
    exact = draft("st", source, tmp_path, lossless=True)
    with tifffile.TiffFile(exact.images[0].path) as tiff:
        pixels = tiff.pages.first.asarray()
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(source / "images" / "C2.jpg")))


def test_a_tiled_tiff_is_used_where_it_lies(tmp_path: Path) -> None:
    source = st_folder(tmp_path / "st", images=False)
    image = write_pyramid(picture(240, 240), source / "images" / "C2.tif", mpp=5.0, tile=64)
    assert draft("st", source, tmp_path).images[0].path == image


def test_st_patient_rules_are_explicit(tmp_path: Path) -> None:
    source = st_folder(tmp_path / "st", ("P01_r2",), images=False)
    found = draft("st", source, tmp_path, patient_pattern=r"^(P\d+)_")
    assert (found.patient, found.block) == ("P01", "P01")
    rows = {"P01_r2": {"patient": "Z", "block": "b1", "organ": "breast"}}
    found = draft("st", source, tmp_path, patients=rows)
    assert (found.patient, found.block, found.organ) == ("Z", "b1", "breast")
    assert found.source["patient_source"] == "--patients"


def test_st_gene_columns_of_one_name_are_summed(tmp_path: Path) -> None:
    from vendor_layouts import edit_text

    source = st_folder(tmp_path / "st", images=False)
    before = draft("st", source, tmp_path).table.X.sum()
    edit_text(source / "counts" / "C2.tsv.gz", lambda text: text.replace("KRT8", "ERBB2", 1))
    found = draft("st", source, tmp_path)
    assert list(found.table.var_names) == ["ERBB2", "COL1A1", "CD3E", "ALB"]
    assert found.table.X.sum() == before


@needs_shared
def test_the_scale_of_real_sections_is_that_of_their_arrays(tmp_path: Path) -> None:
    assert SHARED is not None
    a1 = draft("st", SHARED / "her2st", tmp_path, "A1")
    fit = a1.source["scale"]
    assert round(fit["mpp"], 3) == 0.917
    assert a1.table.shape == (346, 15045)
    assert set(a1.table.obs["label"]) >= {"invasive cancer", "connective tissue", ""}
    spots = pd.read_csv(SHARED / "her2st" / "spots" / "C2_selection.tsv", sep="\t")
    c2 = fit_lattice(spots[["new_x", "new_y"]] * 200.0, spots[["pixel_x", "pixel_y"]], pitch_um=200, where="C2")
    assert (round(c2.mpp, 3), round(c2.mpp_x, 3), round(c2.mpp_y, 3)) == (0.688, 0.690, 0.686)


# ---- visium


@pytest.mark.parametrize("header", [True, False])
def test_visium_scale_comes_from_the_pitch_not_from_the_spot(tmp_path: Path, header: bool) -> None:
    found = draft("visium", visium_folder(tmp_path / "run", mpp=0.5, header=header), tmp_path, patient="P")
    mpp = found.source["scale"]["mpp"]
    assert mpp == pytest.approx(0.5, rel=1e-3)
    assert nearest_pitch(found.table.obsm["spatial"]) == pytest.approx(100, rel=0.01)
    wrong = mpp_by_spot_diameter(65 / 0.5)
    assert abs(wrong / mpp - 1) > 0.15  # 55 µm over a printed 65 µm


def test_visium_without_a_full_image_keeps_a_preview_with_its_own_scale(tmp_path: Path) -> None:
    found = draft("visium", visium_folder(tmp_path / "run", mpp=2.0), tmp_path, patient="P")
    (image,) = found.images
    assert image.role == "preview"
    assert image.mpp == pytest.approx(4.0, rel=1e-3)  # tissue_hires_scalef 0.5
    assert image.to_um.mpp == pytest.approx(image.mpp)
    assert found.species == "human"
    assert list(found.table.var["ensembl_id"]) == list(IDS)


def test_visium_with_its_full_image_has_both(tmp_path: Path) -> None:
    run = visium_folder(tmp_path / "run", mpp=2.0)
    size = fullres_size(pd.read_csv(run / "spatial" / "tissue_positions.csv"))
    image = write_pyramid(picture(*size), tmp_path / "full.tif", mpp=2.0, tile=64)
    found = draft("visium", run, tmp_path, patient="P", image=image)
    assert [(i.role, round(i.mpp, 1)) for i in found.images] == [("full", 2.0), ("preview", 4.0)]
    wrong = write_pyramid(picture(*size), tmp_path / "wrong.tif", mpp=2.2, tile=64)
    with pytest.raises(ScaleError, match=r"2\.2000 µm/px \(TIFF resolution\)"):
        draft("visium", run, tmp_path, patient="P", image=wrong)


def test_a_blank_hires_picture_gives_way_to_lowres(tmp_path: Path) -> None:
    run = visium_folder(tmp_path / "run", mpp=2.0)
    hires = run / "spatial" / "tissue_hires_image.png"
    width, height = Image.open(hires).size
    Image.new("RGB", (width, height)).save(hires)
    Image.fromarray(picture(width // 4 + 1, height // 4 + 1)).save(run / "spatial" / "tissue_lowres_image.png")
    found = draft("visium", run, tmp_path, patient="P")
    assert found.images[0].path.name == "tissue_lowres_image.png"
    assert found.images[0].mpp == pytest.approx(16.0, rel=1e-3)
    assert any("blank" in note for note in found.source["notes"])


def test_visium_runs_are_named_by_their_sample_folder(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        visium_folder(tmp_path / "runs" / name / "outs")
    found = find_reader("visium").discover(tmp_path / "runs", ReadOptions(scratch=tmp_path))
    assert [s.section_id for s in found] == ["s1", "s2"]


def test_raw_counts_are_cut_to_the_spots_in_tissue_and_other_features_left_out(tmp_path: Path) -> None:
    run = visium_folder(tmp_path / "run")
    positions = pd.read_csv(run / "spatial" / "tissue_positions.csv")
    (run / "filtered_feature_bc_matrix.h5").unlink()
    kinds = ("Gene Expression",) * 4 + ("Antibody Capture",)
    write_10x_h5(run / "raw_feature_bc_matrix.h5", counts(len(positions)), list(positions["barcode"]), kinds=kinds)
    found = draft("visium", run, tmp_path, patient="P")
    assert set(found.table.obs_names) == set(positions.loc[positions["in_tissue"] == 1, "barcode"])
    assert list(found.table.var_names) == list(GENES[:4])
    assert any("Antibody Capture" in note for note in found.source["notes"])


def test_a_visium_hd_bin_folder_is_a_lattice_of_squares(tmp_path: Path) -> None:
    run = visium_folder(tmp_path / "run" / "outs" / "binned_outputs" / "square_016um", mpp=2.0)
    path = run / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(path)
    frame["array_col"] = frame["array_col"] // 2
    frame["pxl_col_in_fullres"], frame["pxl_row_in_fullres"] = frame["array_col"] * 8 + 4, frame["array_row"] * 8 + 4
    frame.to_parquet(path.with_suffix(".parquet"))
    path.unlink()
    write_json(
        run / "spatial" / "scalefactors_json.json",
        {"bin_size_um": 16.0, "microns_per_pixel": 2.0, "tissue_hires_scalef": 0.5},
    )
    found = draft("visium", run, tmp_path, patient="P")
    assert (found.section_id, found.platform) == ("run-square_016um", "visium-hd")
    assert (found.location_shape, found.location_um, found.pitch_um) == ("square", 16.0, 16.0)
    assert nearest_pitch(found.table.obsm["spatial"]) == pytest.approx(16.0)


@needs_shared
def test_the_real_visium_sample_is_read(tmp_path: Path) -> None:
    assert SHARED is not None
    found = draft("visium", SHARED / "visium_sample", tmp_path, patient="P")
    assert found.table.shape == (100, 100)
    assert found.table.X.sum() == 932
    assert found.source["scale"]["mpp"] == pytest.approx(0.7252, abs=2e-4)
    assert abs(mpp_by_spot_diameter(89.42751063343188) / found.source["scale"]["mpp"] - 1) > 0.15
    assert found.images[0].role == "preview"


# ---- hest


def test_hest_reads_counts_image_and_metadata(tmp_path: Path) -> None:
    found = draft("hest", hest_folder(tmp_path / "hest", mpp=2.0), tmp_path)
    assert (found.platform, found.patient, found.species, found.organ) == (
        "visium",
        "A study / Patient 1",
        "human",
        "breast",
    )
    assert (found.location_um, found.pitch_um, found.location_shape) == (55.0, 100.0, "circle")
    assert found.table.obsm["spatial"].min() == pytest.approx(100.0)
    assert found.images[0].mpp_source == "metadata pixel_size_um_estimated"


def test_hest_xenium_controls_are_left_out_and_the_pitch_is_measured(tmp_path: Path) -> None:
    source = hest_folder(tmp_path / "hest", mpp=2.0, st_technology="Xenium", inter_spot_dist=55.0)
    path = source / "st" / "TENX1.h5ad"
    found = ad.read_h5ad(path)
    found.var_names = ["ERBB2", "NegControlProbe_1", "BLANK_0001", "UnassignedCodeword_3", "ALB"]
    found.write_h5ad(path)
    read = draft("hest", source, tmp_path)
    assert list(read.table.var_names) == ["ERBB2", "ALB"]
    assert (read.location_shape, read.location_um, read.pitch_um) == ("square", pytest.approx(100), pytest.approx(100))
    assert any("55" in note for note in read.source["notes"])


def test_hest_patients_of_two_studies_are_two_patients(tmp_path: Path) -> None:
    source = hest_folder(tmp_path / "hest", "A", image=False)
    hest_folder(source, "B", image=False, dataset_title="Another study")
    assert draft("hest", source, tmp_path, "A").patient != draft("hest", source, tmp_path, "B").patient


def test_hest_patch_files_go_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patches = Patches(
        pixels=rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8),
        corners_px=rng.integers(0, 9000, (7, 2)),
        barcodes=tuple(f"bärcode{i}" for i in range(7)),
        mpp=0.2737,
        size_level0_px=round(224 * 0.5 / 0.2737),
        name="TENX1",
    )
    path = tmp_path / "TENX1.h5"
    write_patches_h5(path, patches)
    back = read_patches_h5(path)
    for f in dataclasses.fields(Patches):
        np.testing.assert_array_equal(getattr(back, f.name), getattr(patches, f.name))
    some = read_patches_h5(path, rows=slice(2, 5))
    np.testing.assert_array_equal(some.pixels, patches.pixels[2:5])
    assert some.barcodes == patches.barcodes[2:5]


def test_hest_patch_files_have_the_layout_others_read(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "a.h5"
    write_patches_h5(
        path, Patches(np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 2), np.int64), ("a", "b", "c"), 0.25, 32)
    )
    with h5py.File(path) as file:
        assert (file["img"].shape, file["img"].chunks, file["img"].compression) == (
            (3, 16, 16, 3),
            (1, 16, 16, 3),
            None,
        )
        assert (file["barcode"].shape, file["coords"].shape) == ((3, 1), (3, 2))
        assert dict(file["img"].attrs) == {
            "patch_size_src": 32,
            "patch_size_target": 16,
            "downsample": 0.5,
            "pixel_size": 0.25,
        }


# ---- anndata


def test_anndata_in_pixels_and_in_micrometres_gives_one_section(tmp_path: Path) -> None:
    for unit, pitch in (("px", 50.0), ("um", 100.0)):
        folder = tmp_path / unit
        folder.mkdir()
        table(5, pitch=pitch, patient="P").write_h5ad(folder / "s.h5ad")
        write_pyramid(picture(300, 300), folder / "s.tif", mpp=2.0, tile=64)
    drafts = [
        draft("anndata", tmp_path / unit, tmp_path, spatial_unit=unit, location_um=55.0, pitch_um=100.0)
        for unit in ("px", "um")
    ]
    np.testing.assert_allclose(*(d.table.obsm["spatial"] for d in drafts))
    assert [d.images[0].mpp for d in drafts] == [pytest.approx(2.0), pytest.approx(2.0)]
    assert [d.patient for d in drafts] == ["P", "P"]


def test_anndata_zarr_layers_and_ensembl_ids(tmp_path: Path) -> None:
    found = table(4, patient="P")
    found.layers["raw_counts"] = found.X.copy()
    found.X = sp.csr_matrix(np.log1p(found.X.toarray()))
    found.var = pd.DataFrame({"feature_name": pd.Categorical(GENES)}, index=[f"{i}.3" for i in IDS])
    found.obs["cell type"] = "x"
    found.obs["region"] = "r"
    found.write_zarr(tmp_path / "s.zarr")
    read = draft(
        "anndata", tmp_path / "s.zarr", tmp_path, spatial_unit="um", location_um=55.0, counts_layer="raw_counts"
    )
    assert list(read.table.var_names) == list(GENES)
    assert list(read.table.var["ensembl_id"]) == list(IDS)
    assert "cell_type" in read.table.obs
    assert "region" not in read.table.obs
    notes = " ".join(read.source["notes"])
    assert "'cell type' -> 'cell_type'" in notes
    assert "left out, beside counts and columns: X" in notes


def test_one_table_of_several_sections_is_taken_apart(tmp_path: Path) -> None:
    found = table(4)
    found.obs["slide"] = ["s1"] * 8 + ["s2"] * 8
    found.obs["patient"] = found.obs["slide"]
    found.write_h5ad(tmp_path / "all.h5ad")
    said = {"spatial_unit": "um", "location_um": 55.0, "section_column": "slide"}
    parts = [draft("anndata", tmp_path / "all.h5ad", tmp_path, name, **said) for name in ("s1", "s2")]
    assert [p.table.n_obs for p in parts] == [8, 8]
    assert [p.patient for p in parts] == ["s1", "s2"]


# ---- normalisation


def test_a_checked_table_holds_plain_types_alone(tmp_path: Path) -> None:
    found = table(3)
    found.obs["kind"] = pd.Categorical(["a", None] + ["b"] * 7)
    found.obs["n"] = pd.array([1, None] + [3] * 7, dtype="Int64")
    found.obs["yes"] = pd.array([True] * 9, dtype="boolean")
    found.obs["text"] = pd.array(["t", None] + ["u"] * 7, dtype="string")
    out = check_draft(
        SectionDraft("s", "P", "test", found, location_um=55.0, pitch_um=None),  # type: ignore[arg-type]
        where="here",
    ).table
    assert {str(t) for t in out.obs.dtypes} == {"object", "float64", "bool"}
    assert list(out.obs["kind"][:3]) == ["a", "", "b"]
    assert list(out.obs["text"][:3]) == ["t", "", "u"]
    assert list(out.obs["caption"]) == [""] * 9
    assert out.var["measured"].to_numpy().all()
    assert (out.X.format, out.X.dtype.name) == ("csr", "int32")
    assert found.X.dtype.name == "float32"  # what was given is left as it was


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), kind=st.sampled_from(["float32", "float64", "int16", "uint8"]), dense=st.booleans())
def test_checked_counts_are_the_counts_that_were_given(seed: int, kind: str, dense: bool) -> None:
    from triglyph.tissue.checks import checked_counts

    matrix = np.random.default_rng(seed).poisson(1.0, (5, 4)).astype(kind)
    names = np.array(list("abcde"), dtype=object)
    given_ = matrix if dense else sp.csc_matrix(matrix)
    out = checked_counts(given_, barcodes=names, genes=names[:4], where="here")
    np.testing.assert_array_equal(out.toarray(), matrix)
    assert out.nnz == np.count_nonzero(matrix)
