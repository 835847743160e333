"""Bad input: every case ends in an error that says what, where and the mend, and leaves nothing half-written."""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from PIL import Image

from triglyph.errors import ContractError, GeneError, RecipeError, ScaleError, SourceError, StorageError, TriglyphError
from triglyph.tissue.checks import check_draft
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.readers.hest_patches import read_patches_h5
from triglyph.units import Mpp, Um
from triglyph.workflows.read import read
from vendor_layouts import (
    GENES,
    edit_counts,
    edit_json,
    edit_text,
    hest_folder,
    leftovers,
    picture,
    st_folder,
    table,
    visium_folder,
)

Case = tuple[Callable[[Path], dict[str, Any]], type[TriglyphError], tuple[str, ...]]
CASES: dict[str, Case] = {}


def case(error: type[TriglyphError], *said: str) -> Callable[[Callable[[Path], dict[str, Any]]], Any]:
    """Register a maker of a broken source: it returns the arguments of `read`; all of `said` must be in the message."""

    def register(make: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
        CASES[make.__name__] = (make, error, said)
        return make

    return register


def st(folder: Path, **options: Any) -> dict[str, Any]:
    return {"sources": [folder], "platform": "st", **options}


def visium(folder: Path, **options: Any) -> dict[str, Any]:
    return {"sources": [folder], "platform": "visium", "patient": "P", **options}


def hest(folder: Path, **options: Any) -> dict[str, Any]:
    return {"sources": [folder], "platform": "hest", **options}


def plain(found: ad.AnnData, folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    found.write_h5ad(folder / "s.h5ad")
    return anndata(folder / "s.h5ad", **options)


def anndata(path: Path, **options: Any) -> dict[str, Any]:
    said = {"sources": [path], "platform": "anndata", "spatial_unit": "um", "location_um": 55.0, "patient": "P"}
    return {k: v for k, v in (said | options).items() if v is not None}


def counts_of(folder: Path) -> Path:
    return folder / "counts" / "C2.tsv.gz"


def spots_of(folder: Path) -> Path:
    return folder / "spots" / "C2_selection.tsv"


# ---- counts


@case(
    ContractError, "count -1 is negative", "C2.tsv.gz, section C2, row 2 (barcode ", "gene COL1A1", "scaled or centred"
)
def negative_counts(tmp: Path) -> dict[str, Any]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.iloc[2, 2] = -1
        return frame

    edit_counts(counts_of(st_folder(tmp)), change)
    return st(tmp)


@case(ContractError, "is not a whole number", "row 0 (barcode 7x8)", "gene ERBB2", "log-normalised")
def log_normalised_counts(tmp: Path) -> dict[str, Any]:
    edit_counts(counts_of(st_folder(tmp)), np.log1p)
    return st(tmp)


@case(ContractError, "count nan is not finite", "row 3 (barcode", "NaN is not zero")
def a_count_is_missing(tmp: Path) -> dict[str, Any]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype(float)
        frame.iloc[3, 1] = np.nan
        return frame

    edit_counts(counts_of(st_folder(tmp)), change)
    return st(tmp)


@case(SourceError, "'many' is not a count", "C2.tsv.gz, line 3 (spot", "gene ALB")
def a_count_is_a_word(tmp: Path) -> dict[str, Any]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype(object)
        frame.iloc[1, 4] = "many"
        return frame

    edit_counts(counts_of(st_folder(tmp)), change)
    return st(tmp)


@case(ContractError, "barcodes occur more than once: 7x8", "rows 0, 25", "keep one row")
def a_barcode_occurs_twice(tmp: Path) -> dict[str, Any]:
    edit_counts(counts_of(st_folder(tmp)), lambda frame: pd.concat([frame, frame.iloc[:1]]))
    return st(tmp)


@case(SourceError, "the counts file is empty", "C2.tsv.gz", "copy it again")
def the_counts_file_has_no_bytes(tmp: Path) -> dict[str, Any]:
    counts_of(st_folder(tmp)).write_bytes(b"")
    return st(tmp)


@case(SourceError, "no rows", "C2.tsv.gz")
def the_counts_file_has_a_header_alone(tmp: Path) -> dict[str, Any]:
    edit_text(counts_of(st_folder(tmp)), lambda text: text.splitlines()[0] + "\n")
    return st(tmp)


@case(SourceError, "the counts file is not readable", "C2.tsv.gz", "copy the file again")
def the_counts_file_is_truncated(tmp: Path) -> dict[str, Any]:
    path = counts_of(st_folder(tmp, side=20))
    path.write_bytes(path.read_bytes()[:-200])
    return st(tmp)


@case(SourceError, "the counts file is not readable", "C2.tsv.gz")
def the_counts_file_is_no_gzip(tmp: Path) -> dict[str, Any]:
    path = counts_of(st_folder(tmp))
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return st(tmp)


@case(ContractError, "there are no genes", "s.h5ad")
def there_are_no_genes(tmp: Path) -> dict[str, Any]:
    return plain(table(3)[:, []].copy(), tmp)


@case(ContractError, "there are no locations")
def there_are_no_locations(tmp: Path) -> dict[str, Any]:
    return plain(table(3)[[]].copy(), tmp)


@case(ContractError, "no layer 'counts'", "other, raw")
def the_layer_is_not_there(tmp: Path) -> dict[str, Any]:
    found = table(3)
    found.layers["raw"] = found.layers["other"] = found.X
    return plain(found, tmp, counts_layer="counts")


@case(ContractError, "1 barcodes occur more than once: spot0", "rows 0, 1 (spot0)")
def an_anndata_repeats_a_barcode(tmp: Path) -> dict[str, Any]:
    found = table(3)
    found.obs_names = ["spot0", "spot0", *found.obs_names[2:]]
    return plain(found, tmp)


# ---- positions


@case(SourceError, "the spots file is missing", "C2_selection.tsv", "--only")
def the_spots_file_is_missing(tmp: Path) -> dict[str, Any]:
    spots_of(st_folder(tmp)).unlink()
    return st(tmp)


@case(SourceError, "lacks the columns new_x", "C2_selection.tsv")
def the_spots_file_lacks_a_column(tmp: Path) -> dict[str, Any]:
    edit_text(spots_of(st_folder(tmp)), lambda text: text.replace("new_x", "old_x"))
    return st(tmp)


@case(SourceError, "1 spots have no position", "C2_selection.tsv, line 4")
def a_spot_has_no_position(tmp: Path) -> dict[str, Any]:
    path = spots_of(st_folder(tmp))
    frame = pd.read_csv(path, sep="\t")
    frame.loc[2, "pixel_x"] = np.nan
    frame.to_csv(path, sep="\t", index=False)
    return st(tmp)


@case(ContractError, "spot 3x4 occurs more than once", "lines 2, 27")
def a_spot_is_listed_twice(tmp: Path) -> dict[str, Any]:
    path = spots_of(st_folder(tmp))
    edit_text(path, lambda text: text + text.splitlines()[1] + "\n")
    return st(tmp)


@case(SourceError, "none of the 25 spots", "of one section")
def counts_and_spots_are_of_two_sections(tmp: Path) -> dict[str, Any]:
    edit_counts(counts_of(st_folder(tmp)), lambda frame: frame.set_axis([f"{i}x99" for i in range(len(frame))]))
    return st(tmp)


@case(ContractError, "lie outside the image of 120 x 120 px", "(barcode", "images/C2.tif", "--outside drop")
def spots_lie_outside_the_image(tmp: Path) -> dict[str, Any]:
    st_folder(tmp, images=False)
    write_pyramid(picture(120, 120), tmp / "images" / "C2.tif", mpp=5.0, tile=64)
    return st(tmp)


@case(SourceError, "positions file is missing", "tissue_positions.csv")
def visium_has_no_positions(tmp: Path) -> dict[str, Any]:
    (visium_folder(tmp) / "spatial" / "tissue_positions.csv").unlink()
    return visium(tmp)


@case(SourceError, "barcodes of the counts have no position", "of one run")
def visium_counts_are_of_another_run(tmp: Path) -> dict[str, Any]:
    edit_text(visium_folder(tmp) / "spatial" / "tissue_positions.csv", lambda text: text.replace("ACGT0", "TTTT0"))
    return visium(tmp)


@case(ContractError, "obsm['spatial'] is missing", "--spatial-key", "obsm has where")
def the_positions_are_under_another_key(tmp: Path) -> dict[str, Any]:
    found = table(3)
    found.obsm["where"] = found.obsm.pop("spatial")
    return plain(found, tmp)


@case(ContractError, "1 locations have no position", "row 4 (barcode spot4)")
def a_centre_is_not_finite(tmp: Path) -> dict[str, Any]:
    found = table(3)
    found.obsm["spatial"][4, 1] = np.inf
    return plain(found, tmp)


@case(ContractError, "shape (9, 3), not (n, 2)")
def the_positions_have_three_columns(tmp: Path) -> dict[str, Any]:
    found = table(3)
    found.obsm["spatial"] = np.zeros((9, 3))
    return plain(found, tmp)


# ---- images


@case(SourceError, "not an image", "C2.jpg")
def the_image_is_no_image(tmp: Path) -> dict[str, Any]:
    (st_folder(tmp) / "images" / "C2.jpg").write_bytes(b"<html>404</html>")
    return st(tmp)


@case(SourceError, "does not open or is truncated", "C2.jpg", "copy the image again")
def the_jpeg_is_truncated(tmp: Path) -> dict[str, Any]:
    path = st_folder(tmp) / "images" / "C2.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return st(tmp)


@case(SourceError, "C2.tif", "copy the image again")
def the_tiff_is_truncated(tmp: Path) -> dict[str, Any]:
    path = write_pyramid(picture(600, 600), st_folder(tmp, images=False) / "images" / "C2.tif", mpp=5.0, tile=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return st(tmp)


@case(SourceError, "not an 8-bit RGB image", "C2.tif", "brightfield")
def the_image_is_16_bit(tmp: Path) -> dict[str, Any]:
    path = st_folder(tmp, images=False) / "images" / "C2.tif"
    tifffile.imwrite(path, np.zeros((240, 240), np.uint16), tile=(64, 64))
    return st(tmp)


@case(SourceError, "the image is not there", "gone.tif")
def the_image_is_not_there(tmp: Path) -> dict[str, Any]:
    return st(st_folder(tmp, images=False), image=[str(tmp / "gone.tif")])


@case(SourceError, "does not open or is truncated", "tissue_hires_image.png")
def the_visium_picture_is_broken(tmp: Path) -> dict[str, Any]:
    (visium_folder(tmp) / "spatial" / "tissue_hires_image.png").write_bytes(b"\x89PNG no more")
    return visium(tmp)


# ---- scales


@case(ScaleError, "the scale of the image is not known", "--mpp")
def the_scale_is_missing(tmp: Path) -> dict[str, Any]:
    tmp.mkdir()
    Image.fromarray(picture(400, 400)).save(tmp / "s.png")
    return plain(table(3), tmp, spatial_unit="px")


@case(ScaleError, "no pixel_size_um_estimated", "TENX1.json", "--mpp")
def hest_has_no_scale(tmp: Path) -> dict[str, Any]:
    return hest(hest_folder(tmp, image=False, pixel_size_um_estimated=None))


@case(ScaleError, "5.0000 µm/px (array pitch", "4.0000 µm/px (TIFF resolution)")
def array_and_image_contradict_each_other(tmp: Path) -> dict[str, Any]:
    write_pyramid(picture(240, 240), st_folder(tmp, images=False) / "images" / "C2.tif", mpp=4.0, tile=64)
    return st(tmp)


@case(ScaleError, "0.5000 µm/px (--mpp)", "5.0000 µm/px (array pitch")
def the_user_contradicts_the_array(tmp: Path) -> dict[str, Any]:
    return st(st_folder(tmp), mpp=0.5)


@case(ScaleError, "2.0000 µm/px (metadata pixel_size_um_estimated)", "2.5000 µm/px (TIFF resolution)")
def hest_metadata_and_image_contradict_each_other(tmp: Path) -> dict[str, Any]:
    return hest(hest_folder(tmp, mpp=2.0, tag_mpp=2.5))


@case(ScaleError, "300 x 300 px, the metadata say 600 x 600 px")
def the_hest_image_is_a_smaller_copy(tmp: Path) -> dict[str, Any]:
    return hest(hest_folder(tmp, fullres_px_width=600, fullres_px_height=600))


@case(ScaleError, "x 5.0000 and y 6.0000 µm/px", "C2_selection.tsv")
def the_axes_of_the_array_disagree(tmp: Path) -> dict[str, Any]:
    return st(st_folder(tmp, mpp=5.0, mpp_y=6.0))


@case(ScaleError, "it fits neither axis", "a lattice of 200 µm")
def the_pitch_fits_neither_axis(tmp: Path) -> dict[str, Any]:
    path = spots_of(st_folder(tmp))
    frame = pd.read_csv(path, sep="\t")
    frame["pixel_x"] = np.random.default_rng(0).permutation(frame["pixel_x"])
    frame.to_csv(path, sep="\t", index=False)
    return st(tmp)


@case(ScaleError, "2 spots in a line or fewer than three")
def two_spots_fit_no_lattice(tmp: Path) -> dict[str, Any]:
    edit_text(spots_of(st_folder(tmp, images=False)), lambda text: "\n".join(text.splitlines()[:3]))
    return st(tmp)


@case(ScaleError, "pixel size of 250 µm/px is outside", "--mpp")
def the_scale_is_a_mix_up_of_units(tmp: Path) -> dict[str, Any]:
    tmp.mkdir()
    Image.fromarray(picture(400, 400)).save(tmp / "s.png")
    return plain(table(3), tmp, spatial_unit="px", mpp=250.0)


@case(ScaleError, "locations are 100.00 µm apart", "not 50 µm as --pitch-um says")
def the_pitch_contradicts_the_positions(tmp: Path) -> dict[str, Any]:
    return plain(table(3), tmp, pitch_um=50.0)


@case(SourceError, "not readable as JSON", "scalefactors_json.json")
def visium_scale_factors_are_garbled(tmp: Path) -> dict[str, Any]:
    (visium_folder(tmp) / "spatial" / "scalefactors_json.json").write_text("{")
    return visium(tmp)


@case(ScaleError, "tissue_hires_scalef is None", "scalefactors_json.json")
def visium_lacks_a_scale_factor(tmp: Path) -> dict[str, Any]:
    edit_json(visium_folder(tmp) / "spatial" / "scalefactors_json.json", tissue_hires_scalef=None)
    return visium(tmp)


@case(RecipeError, "unit of the positions is not known", "--spatial-unit")
def the_unit_is_not_said(tmp: Path) -> dict[str, Any]:
    return plain(table(3), tmp, spatial_unit=None)


@case(RecipeError, "size of a location is not known", "--location-um")
def the_size_of_a_location_is_not_said(tmp: Path) -> dict[str, Any]:
    return plain(table(3), tmp, location_um=None)


# ---- patients and names


@case(ContractError, "patient of section 'tumour-2' cannot be told", "--patients FILE.csv")
def the_name_holds_no_patient(tmp: Path) -> dict[str, Any]:
    return st(st_folder(tmp, ("tumour-2",), images=False))


@case(ContractError, "the patient is not known", "--patients FILE.csv", "--patient ID")
def visium_has_no_patient(tmp: Path) -> dict[str, Any]:
    return visium(visium_folder(tmp), patient=None)


@case(ContractError, "the patient is not known", "section TENX1")
def hest_has_no_patient(tmp: Path) -> dict[str, Any]:
    return hest(hest_folder(tmp, image=False, patient=None))


@case(ContractError, "obs has no column 'patient'", "--patient-column", "obs has donor")
def the_patient_column_is_missing(tmp: Path) -> dict[str, Any]:
    return plain(table(3, donor="D1"), tmp, patient=None)


@case(ContractError, "one section of 2 patients: p1, p2", "--section-column")
def one_section_has_two_patients(tmp: Path) -> dict[str, Any]:
    found = table(3)
    found.obs["patient"] = ["p1"] * 4 + ["p2"] * 5
    return plain(found, tmp, patient=None)


@case(ContractError, "no row for this section", "section C2")
def the_patients_file_forgets_a_section(tmp: Path) -> dict[str, Any]:
    st_folder(tmp, images=False)
    (tmp / "p.csv").write_text("section,patient\nC3,C\n")
    return st(tmp, patients=tmp / "p.csv")


@case(ContractError, "the patient is not known", "p.csv, line 2 (section 'C2')")
def the_patients_file_has_an_empty_patient(tmp: Path) -> dict[str, Any]:
    st_folder(tmp, images=False)
    (tmp / "p.csv").write_text("section,patient\nC2,\n")
    return st(tmp, patients=tmp / "p.csv")


@case(SourceError, "lacks the column 'patient'", "p.csv")
def the_patients_file_has_no_patient_column(tmp: Path) -> dict[str, Any]:
    st_folder(tmp, images=False)
    (tmp / "p.csv").write_text("section,donor\nC2,C\n")
    return st(tmp, patients=tmp / "p.csv")


@case(ContractError, "section 'C2' has two rows", "p.csv, line 3")
def the_patients_file_has_a_section_twice(tmp: Path) -> dict[str, Any]:
    st_folder(tmp, images=False)
    (tmp / "p.csv").write_text("section,patient\nC2,C\nC2,D\n")
    return st(tmp, patients=tmp / "p.csv")


@case(ContractError, "'../../escaped' cannot name a section", "letters, digits")
def the_name_would_leave_the_cohort(tmp: Path) -> dict[str, Any]:
    return plain(table(3, slide="../../escaped"), tmp, section_column="slide")


@case(ContractError, "two sections are called 'C2'", "one", "two", "rename one")
def two_sources_hold_one_id(tmp: Path) -> dict[str, Any]:
    sources = [st_folder(tmp / name, images=False) for name in ("one", "two")]
    return {"sources": sources, "platform": "st"}


@case(RecipeError, "both --patient and --patients")
def two_ways_to_name_patients(tmp: Path) -> dict[str, Any]:
    st_folder(tmp, images=False)
    (tmp / "p.csv").write_text("section,patient\nC2,C\n")
    return st(tmp, patients=tmp / "p.csv", patient="C")


# ---- folders and formats


@case(SourceError, "not a Spatial Transcriptomics folder", "it looks like --platform visium")
def the_folder_is_of_another_platform(tmp: Path) -> dict[str, Any]:
    return st(visium_folder(tmp))


@case(SourceError, "no such file or folder", "nowhere")
def the_folder_is_not_there(tmp: Path) -> dict[str, Any]:
    return st(tmp / "nowhere")


@case(RecipeError, "no reader for platform 'merfish'", "choose one of anndata, ")
def the_platform_has_no_reader(tmp: Path) -> dict[str, Any]:
    return st(st_folder(tmp)) | {"platform": "merfish"}


@case(RecipeError, "no section Z9", "--only", "the sources hold C2")
def the_section_is_not_there(tmp: Path) -> dict[str, Any]:
    return st(st_folder(tmp), only=["Z9"])


@case(SourceError, "not readable as a 10x count matrix", "filtered_feature_bc_matrix.h5")
def the_h5_is_garbled(tmp: Path) -> dict[str, Any]:
    (visium_folder(tmp) / "filtered_feature_bc_matrix.h5").write_bytes(os.urandom(4096))
    return visium(tmp)


@case(SourceError, "not readable as a 10x count matrix", "filtered_feature_bc_matrix.h5")
def the_h5_is_truncated(tmp: Path) -> dict[str, Any]:
    path = visium_folder(tmp) / "filtered_feature_bc_matrix.h5"
    path.write_bytes(path.read_bytes()[:3000])
    return visium(tmp)


@case(SourceError, "not readable as an AnnData", "s.h5ad")
def the_h5ad_is_truncated(tmp: Path) -> dict[str, Any]:
    said = plain(table(3), tmp)
    path = tmp / "s.h5ad"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return said


@case(SourceError, "the metadata file is missing", "TENX1.json")
def hest_has_no_metadata(tmp: Path) -> dict[str, Any]:
    (hest_folder(tmp, image=False) / "metadata" / "TENX1.json").unlink()
    return hest(tmp)


@case(SourceError, "st_technology is 'MERFISH'", "visium hd")
def hest_names_an_unknown_technology(tmp: Path) -> dict[str, Any]:
    return hest(hest_folder(tmp, image=False, st_technology="MERFISH"))


@case(SourceError, "no label belongs to a spot", "C2_labeled_coordinates.tsv")
def the_labels_are_of_another_section(tmp: Path) -> dict[str, Any]:
    path = st_folder(tmp, images=False) / "labels" / "C2_labeled_coordinates.tsv"
    frame = pd.read_csv(path, sep="\t")
    frame.assign(x=frame.x + 50).to_csv(path, sep="\t", index=False)
    return st(tmp)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_says_what_where_and_the_mend_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, kind, said = CASES[name]
    arguments = make(tmp_path / "source")
    out = tmp_path / "out" / "cohort"
    try:
        report = read(out=out, **arguments)
    except TriglyphError as error:
        found = error
    else:
        assert report.exit_code == 1
        assert len(report.rows) == 1
        assert report.rows[0].error is not None
        found = report.rows[0].error
    assert type(found) is kind
    message = str(found)
    assert [text for text in said if text not in message] == [], message
    assert found.where
    assert found.mend
    assert not leftovers(out)
    assert not list((out / "sections").glob("*"))
    assert sorted(p.name for p in (tmp_path).iterdir()) in (["source"], ["out", "source"], [], ["out"])


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 25


def test_locations_outside_are_left_out_when_asked_and_noted(tmp_path: Path) -> None:
    arguments = spots_lie_outside_the_image(tmp_path / "source")
    report = read(out=tmp_path / "out", outside="drop", **arguments)
    (section,) = Cohort.open(tmp_path / "out")
    assert 0 < section.n_locations < 25
    assert section.centres_um.max() <= 600
    assert any("outside the image" in note for note in report.rows[0].notes)


def test_a_section_of_one_id_from_elsewhere_is_not_taken_for_the_one_that_is_there(tmp_path: Path) -> None:
    one, two = (st_folder(tmp_path / n, images=False, labels=False, seed=s) for n, s in (("one", 0), ("two", 1)))
    edit_counts(counts_of(two), lambda frame: frame * 1000)
    read([one], out=tmp_path / "out", platform="st")
    before = Cohort.open(tmp_path / "out").digest()
    report = read([two], out=tmp_path / "out", platform="st")
    assert isinstance(report.rows[0].error, ContractError)
    assert "is there already, read otherwise (files" in report.rows[0].detail
    assert Cohort.open(tmp_path / "out").digest() == before


# ---- a full disk


def _full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    [
        "os.fsync",
        "shutil.move",
        "spatialdata.SpatialData.write",
        "tifffile.TiffWriter.write",
        "matplotlib.figure.Figure.savefig",
        "pandas.DataFrame.to_csv",
    ],
)
def test_a_full_disk_says_so_leaves_nothing_half_written_and_is_got_over(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spatialdata  # noqa: F401  named in `where`

    source, out = st_folder(tmp_path / "st", side=3), tmp_path / "out"
    Cohort.create(out)
    with monkeypatch.context() as patch:
        patch.setattr(where, _full)
        with pytest.raises(StorageError, match="No space left on device") as error:
            read([source], out=out, platform="st")
    assert "free some space" in error.value.mend
    assert not leftovers(out)
    assert read([source], out=out, platform="st").exit_code == 0
    (section,) = Cohort.open(out)
    assert section.has_image()
    assert (section.path / "qc.png").is_file()


# ---- the contract itself, for drafts that no reader made


def good(folder: Path) -> SectionDraft:
    image = write_pyramid(picture(400, 400), folder / "he.tif", mpp=1.0, tile=64)
    source = ImageSource(image, Affine.scale(1.0), Mpp(1.0), "test")
    return SectionDraft("s1", "P", "test", table(3), location_um=Um(55), pitch_um=Um(100), images=[source])


def _with_image(draft: SectionDraft, **changes: Any) -> None:
    from dataclasses import replace

    draft.images = [replace(draft.images[0], **changes)]


def _set(draft: SectionDraft, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(draft, name, value)


DRAFTS: dict[str, tuple[Callable[[SectionDraft], Any], type[TriglyphError], str]] = {
    "the map contradicts the mpp": (
        lambda d: _with_image(d, mpp=Mpp(1.1)),
        ScaleError,
        r"1\.1000 µm/px \(test\) and 1\.0000 µm/px",
    ),
    "no mpp": (lambda d: _with_image(d, mpp=None), ScaleError, "None is not a number"),
    "mpp from nowhere": (lambda d: _with_image(d, mpp_source=""), ScaleError, "does not say where it came from"),
    "stretched pixels": (
        lambda d: _with_image(d, to_um=Affine(a=0.95, b=0, c=0, d=0, e=1.0526, f=0)),
        ScaleError,
        "axes have different scales",
    ),
    "one image twice": (lambda d: _set(d, images=d.images * 2), ContractError, "two images have one name"),
    "a gene twice": (
        lambda d: setattr(d.table, "var_names", ["A", "B", "A", "C", "D"]),
        ContractError,
        "1 gene symbols occur more than once: A",
    ),
    "counts of an unmeasured gene": (
        lambda d: d.table.var.__setitem__("measured", [True, False, True, True, True]),
        ContractError,
        "1 genes are marked unmeasured and have counts",
    ),
    "measured half said": (
        lambda d: d.table.var.__setitem__("measured", [True, None, True, True, True]),
        ContractError,
        "not true or false everywhere",
    ),
    "a column of the store's own": (
        lambda d: d.table.obs.__setitem__("region", "x"),
        ContractError,
        "'region' is taken by the store",
    ),
    "a column no store can hold": (
        lambda d: d.table.obs.__setitem__("cell type", "x"),
        ContractError,
        "'cell type' cannot be stored",
    ),
    "an empty patient": (lambda d: _set(d, patient=" "), ContractError, "the patient is not known"),
    "a patient that was NaN": (lambda d: _set(d, patient=str(np.nan)), ContractError, "the patient is not known"),
    "a hidden name": (lambda d: _set(d, section_id=".s1"), ContractError, "cannot name a section"),
    "an absolute name": (lambda d: _set(d, section_id="/etc"), ContractError, "cannot name a section"),
    "a spot without size": (lambda d: _set(d, location_um=0.0), ScaleError, r"location_um is 0\.0"),
    "a pitch that is not a number": (lambda d: _set(d, pitch_um=float("nan")), ScaleError, "pitch_um is nan"),
    "provenance that is not JSON": (lambda d: _set(d, source={"path": Path("x")}), ContractError, "not JSON"),
    "words for counts": (
        lambda d: _set(d, table=_words(d.table)),
        ContractError,
        "not numbers",
    ),
}


def _words(found: ad.AnnData) -> Any:
    """A stand-in whose X is text, which AnnData itself would hold."""
    new = ad.AnnData(X=np.full(found.shape, "1"), obs=found.obs, var=found.var)
    new.obsm["spatial"] = found.obsm["spatial"]
    return new


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_that_breaks_the_contract_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    change, kind, said = DRAFTS[name]
    cohort = Cohort.create(tmp_path / "cohort")
    draft = good(tmp_path)
    change(draft)
    with pytest.raises(kind, match=said) as error:
        cohort.add(draft)
    assert error.value.where
    assert error.value.mend
    assert not leftovers(cohort.path)
    assert cohort.ids == []


def test_the_draft_the_bad_ones_are_made_of_is_good(tmp_path: Path) -> None:
    assert check_draft(good(tmp_path), where="here").table.n_obs == 9


# ---- genes that match nothing


def test_training_sections_without_a_common_gene_are_an_error() -> None:
    from triglyph.genes.variable import GeneMoments

    moments = GeneMoments()
    x = sp.csr_matrix(np.ones((3, 2), dtype=np.int64))
    for symbols in (("A", "B"), ("C", "D")):
        moments.add(x, symbols, ("", ""), np.ones(2, dtype=bool))
    with pytest.raises(GeneError, match="no gene is measured in all 2 training sections") as error:
        moments.finish()
    assert "Ensembl" in error.value.mend


def test_a_section_whose_genes_an_encoder_does_not_know_is_an_error(tmp_path: Path) -> None:
    from triglyph.apply.embed import embed_cohort
    from triglyph.encoders.base import Expression
    from triglyph.encoders.gene_mlp import GeneMLP

    cohort = Cohort.create(tmp_path / "cohort")
    cohort.add(SectionDraft("s1", "P", "test", table(3), location_um=Um(55), pitch_um=Um(100)))
    rng = np.random.default_rng(0)
    known = tuple(f"OTHER{i}" for i in range(4))
    encoder = GeneMLP(genes=4)
    encoder.fit([Expression(sp.csr_matrix(rng.poisson(3, (9, 4))), known, ("",) * 4, np.ones(4, dtype=bool))])
    report = embed_cohort(cohort, encoder)
    assert "none of its 5 genes is among the 4" in report.failed["s1"]
    assert GENES[0] in report.failed["s1"]
    assert "mend" in report.failed["s1"]
    assert not leftovers(cohort.path)


def test_sections_of_two_panels_have_no_common_gene(tmp_path: Path) -> None:
    cohort = Cohort.create(tmp_path / "cohort")
    for name, prefix in (("s1", "A"), ("s2", "B")):
        found = table(3)
        found.var_names = [f"{prefix}{i}" for i in range(5)]
        cohort.add(SectionDraft(name, name, "test", found, location_um=Um(55), pitch_um=None))
    assert cohort.genes(["s1", "s2"]) == ()
    assert len(cohort.genes(["s1", "s2"], how="union")) == 10


# ---- patch files


def test_a_patch_file_that_is_broken_or_of_another_kind_says_so(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "a.h5"
    path.write_bytes(b"no h5")
    with pytest.raises(SourceError, match="not readable as HDF5"):
        read_patches_h5(path)
    with h5py.File(path, "w") as file:
        file["img"] = np.zeros((2, 8, 8, 3), np.uint8)
        file["coords"] = np.zeros((2, 2), np.int64)
    with pytest.raises(SourceError, match="lacks barcode"):
        read_patches_h5(path)
    with h5py.File(path, "a") as file:
        file["barcode"] = np.array([["a"], ["b"]], dtype="S")
    with pytest.raises(SourceError, match="attribute 'patch_size_src'"):
        read_patches_h5(path)
    with h5py.File(path, "a") as file:
        file["img"].attrs.update(patch_size_src=16, pixel_size=0.0)
    with pytest.raises(ScaleError, match="outside"):
        read_patches_h5(path)


def test_a_manifest_of_a_broken_section_is_not_needed_to_name_it(tmp_path: Path) -> None:
    """A record that is cut short names its own file."""
    read([st_folder(tmp_path / "st", images=False)], out=tmp_path / "out", platform="st")
    path = tmp_path / "out" / "sections" / "C2" / "section.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(StorageError, match="not readable as JSON") as error:
        Cohort.open(tmp_path / "out")["C2"]
    assert "section.json" in error.value.where
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_text())
