"""Visium sections that others have annotated, in the layouts in which they go round."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from triglyph.cli import main
from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.readers.annotated_visium import DONORS, LAYERS, read_labels
from triglyph.tissue.readers.base import ReadOptions, find_reader
from triglyph.workflows.read import read
from vendor_layouts import counts, visium_folder, write_10x_h5

N = 64
BARCODES = [f"ACGT{i:03d}-1" for i in range(N)]
"""Of `visium_folder`: the first row of eight is not in tissue."""
IN_TISSUE = BARCODES[8:]
REGIONS = {"IDC_1": "Invasive", "Healthy_1": "Healthy", "DCIS/LCIS_1": "Tumor"}


def layers(style: str = "Layer{}") -> list[str]:
    """A layer for each array row; row 7 has none."""
    return [[style.format(1), *(style.format(k) for k in range(1, 6)), "WM", "NA"][i // 8] for i in range(N)]


def r_table(path: Path, **columns: list[str]) -> None:
    """As R writes a data frame: the header has no name for the barcodes."""
    rows = zip(BARCODES, *columns.values(), strict=True)
    path.write_text("\n".join(["\t".join(columns), *("\t".join(row) for row in rows)]) + "\n")


def output(folder: Path, seed: int, *, header: bool = True) -> Path:
    """A Space Ranger output that is like no other, lest the audit take two sections for one."""
    visium_folder(folder, mpp=2.0 + 0.2 * seed, header=header)
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5", counts(len(IN_TISSUE), seed=seed), IN_TISSUE)
    return folder


def dlpfc(folder: Path) -> Path:
    """Three sections of two donors: R's table, a table with named barcodes, and a truth file beside the folder."""
    made = layers()
    output(folder / "151507", 0)
    r_table(folder / "151507" / "metadata.tsv", layer_guess=made, layer_guess_reordered=made, cell_count=["3"] * N)
    output(folder / "151673", 1, header=False)
    turned = pd.DataFrame({"barcode": BARCODES, "layer_guess": made})[::-1]  # order of rows says nothing
    turned.to_csv(folder / "151673" / "metadata.tsv", sep="\t", index=False)
    output(folder / "151674", 2)
    truth = pd.DataFrame({"barcode": BARCODES, "layer": layers("Layer_{}")})
    truth["layer"] = truth["layer"].replace("NA", "")
    truth.to_csv(folder / "151674_truth.txt", sep="\t", index=False, header=False)
    return folder


def hbc(folder: Path) -> Path:
    """The table of labels lies above the Space Ranger output."""
    visium_folder(folder / "V1_Human_Breast_Cancer_Block_A_Section_1")
    fine = [list(REGIONS)[i % 3] for i in range(N)]
    table = pd.DataFrame({"ID": BARCODES, "annot_type": [REGIONS[f] for f in fine], "fine_annot_type": fine})
    table.to_csv(folder / "metadata.tsv", sep="\t", index=False)
    return folder


def only_draft(platform: str, source: Path, scratch: Path, **options):
    said = ReadOptions(scratch=scratch, **options)
    reader = find_reader(platform)
    return reader.read(reader.discover(source, said)[0], said)


@pytest.fixture(scope="module")
def cortex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dlpfc(tmp_path_factory.mktemp("dlpfc"))


def test_layers_are_joined_by_barcode_whatever_they_are_called(cortex: Path, tmp_path: Path) -> None:
    report = read([cortex], out=tmp_path / "cohort", platform="dlpfc")
    assert not report.failed, [row.error for row in report.rows]
    cohort = Cohort.open(tmp_path / "cohort")
    assert cohort.patients == {"151507": "Br5292", "151673": "Br8100", "151674": "Br8100"}
    wanted = {b: ("L1", "L1", "L2", "L3", "L4", "L5", "WM", "")[i // 8] for i, b in enumerate(BARCODES)}
    for section in cohort:
        table = section.table
        assert list(table.obs_names) == IN_TISSUE
        assert dict(zip(table.obs_names, section.labels, strict=True)) == {b: wanted[b] for b in IN_TISSUE}
        assert (section.info.organ, section.info.species, section.info.platform) == ("brain", "human", "visium")
        assert section.info.source["patient_source"] == "donor of the section (Maynard et al. 2021)"
        assert "labels" in section.info.source["files"]
        assert any("8 spots have none" in note for note in section.info.source["notes"])


def test_donors_are_those_of_the_twelve_sections() -> None:
    assert len(DONORS) == 12
    assert sorted(set(DONORS.values())) == ["Br5292", "Br5595", "Br8100"]
    assert DONORS["151510"] == "Br5292"
    assert DONORS["151669"] == "Br5595"
    assert DONORS["151676"] == "Br8100"
    assert len(LAYERS) == 7


def test_regions_of_the_breast_cancer_are_read_from_above_and_by_another_column(tmp_path: Path) -> None:
    source = hbc(tmp_path / "in")
    assert main(["read", str(source), "--platform", "hbc", "--out", str(tmp_path / "out")]) == 0
    (section,) = Cohort.open(tmp_path / "out")
    assert section.patient == "block-A"
    assert set(section.labels) == set(REGIONS)
    assert [REGIONS[label] for label in section.labels] == list(section.table.obs["annot_type"])
    coarse = only_draft("hbc", source, tmp_path / "s", label_column="annot_type")
    assert set(coarse.table.obs["label"]) == set(REGIONS.values())
    # Whoever knows better whose it is goes before the data set.
    assert only_draft("hbc", source, tmp_path / "s", patient="P1").patient == "P1"


def test_a_folder_that_is_no_section_of_the_data_set_is_refused_in_words(cortex: Path, tmp_path: Path) -> None:
    plain = visium_folder(tmp_path / "plain" / "sample")
    with pytest.raises(SourceError, match="'sample' is no section of DLPFC"):
        only_draft("dlpfc", plain, tmp_path / "s")
    with pytest.raises(SourceError, match="no section has a table of labels"):
        only_draft("hbc", plain, tmp_path / "s")
    with pytest.raises(SourceError, match="no column 'fine_annot_type' or 'ground_truth' or 'annot_type'"):
        only_draft("hbc", cortex / "151507", tmp_path / "s")
    with pytest.raises(RecipeError, match="no column 'regions'"):
        only_draft("hbc", cortex / "151507", tmp_path / "s", label_column="regions")
    with pytest.raises(RecipeError, match="no use for --label-column"):
        read([plain], out=tmp_path / "c", platform="visium", label_column="label", patient="P")


def test_one_section_without_its_labels_fails_and_the_others_are_read(tmp_path: Path) -> None:
    source = dlpfc(tmp_path / "in")
    (source / "151674_truth.txt").unlink()
    report = read([source], out=tmp_path / "out", platform="dlpfc")
    assert report.failed == ("151674",)
    assert "the labels file is missing" in str(next(row.error for row in report.rows if row.error))


def test_a_table_of_labels_that_says_two_things_or_nothing_is_refused(tmp_path: Path) -> None:
    source = visium_folder(tmp_path / "151507")
    path = source / "metadata.tsv"
    path.write_text("barcode\tlayer_guess\nA\tLayer1\nA\tLayer2\n")
    with pytest.raises(ContractError, match="barcode A has two rows"):
        read_labels(path)
    path.write_text("barcode\tlayer_guess\nA\tLayer1\n")
    with pytest.raises(SourceError, match="no label belongs to a spot"):
        only_draft("dlpfc", source, tmp_path / "s")
    r_table(path, layer_guess=["Layer9"] * N)
    with pytest.raises(ContractError, match="'Layer9' is no layer"):
        only_draft("dlpfc", source, tmp_path / "s")
    path.write_text("spot\tlayer_guess\nA\tLayer1\n")
    with pytest.raises(SourceError, match="no column holds barcodes"):
        read_labels(path)
    path.unlink()
    (tmp_path / "151507_truth.txt").write_text("ACGT010-1\tLayer_1\tmore\n")
    with pytest.raises(SourceError, match="3 columns, not 2"):
        only_draft("dlpfc", source, tmp_path / "s")


def test_donors_are_held_out_whole(cortex: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    assert main(["read", str(cortex), "--platform", "dlpfc", "--out", str(cohort)]) == 0
    assert main(["split", str(cohort), "--name", "donors", "--leave-one-out"]) == 0
    folds = Cohort.open(cohort).split("donors").folds
    assert sorted(fold.test for fold in folds) == [("151507",), ("151673", "151674")]
