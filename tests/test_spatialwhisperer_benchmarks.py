"""SpatialWhisperer's benchmarks: labelled nuclei in their providers' layouts, and words against their patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.registry import protocol
from triglyph.bench.spatialwhisperer.protocol import UNKNOWN
from triglyph.bench.spatialwhisperer.sets import CRC, SKIN
from triglyph.errors import ContractError, RecipeError, SourceError, SplitError
from triglyph.tissue.cells import CELLS, labelled_cells
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.readers import kriegsmann, lizard, montage, pannuke, pathocell
from triglyph.tissue.readers.base import ReadOptions, find_reader
from triglyph.tissue.readers.nuclei import Nuclei
from triglyph.workflows.bench_run import bench_run
from triglyph.workflows.bench_subjects import Judged, untrained
from triglyph.workflows.read import read

G = 224


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blank(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((height, width), np.int32), np.zeros((height, width), np.int32)


def cell(maps: tuple[np.ndarray, np.ndarray], number: int, kind: int, y: int, x: int, size: int = 4) -> None:
    for array, value in zip(maps, (number, kind), strict=True):
        array[y : y + size, x : x + size] = value


def write_core(path: Path, image: np.ndarray, maps: tuple[np.ndarray, np.ndarray], *, bits: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["img"] = np.moveaxis(image, -1, 0).astype(np.uint16) * 256 if bits == 16 else np.moveaxis(image, -1, 0)
        file["gt_inst"], file["gt_ct_coarse"] = maps[0][None], maps[1][None].astype(np.uint8)


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cores of 3 x 3 squares, of which the last row and column fall away."""
    folder = tmp_path_factory.mktemp("pathocell")
    maps = blank(3 * G, 3 * G)
    cell(maps, 1, 5, 10, 10)  # T cell in square 0, 0
    cell(maps, 2, 1, 50, 50)  # B cell beside it
    cell(maps, 90_000, 11, 20, G + 30)  # stroma, but for its first pixel: tumour, square 0, 1
    maps[1][20, G + 30] = 12
    cell(maps, 4, 6, G + 40, G - 3, 8)  # granulocyte over the border: its centroid lies in square 1, 1
    cell(maps, 5, 0, G + 10, 10)  # a cell without a class, square 1, 0
    cell(maps, 6, 5, 2 * G + 10, 10)  # last row
    cell(maps, 7, 5, 10, 2 * G + 10)  # last column
    write_core(folder / "pathocell_hdf" / "reg001_A.hdf", pixels(3 * G, 3 * G), maps)
    maps = blank(3 * G, 3 * G)
    for number, (kind, y, x) in enumerate([(5, 0, 0), (1, 0, 1), (5, 1, 0), (5, 1, 1), (12, 1, 1), (5, 2, 2)], start=1):
        cell(maps, number, kind, y * G + 60 + 9 * number, x * G + 60)
    write_core(folder / "pathocell_hdf" / "reg002_B.hdf", pixels(3 * G, 3 * G, seed=1), maps, bits=8)
    return folder


@pytest.fixture(scope="module")
def crc(cores: Path) -> Cohort:
    """Read as the release does; a region is a patient here."""
    out = cores.parent / f"{cores.name}-cohort"
    report = read([cores], out=out, platform="pathocell", patient_pattern=r"(reg\d+)", compat="release")
    assert not report.failed, [row.error for row in report.rows]
    return Cohort.open(out)


def counted(section: Any) -> dict[str, dict[str, int]]:
    counts, names = labelled_cells(section)
    return {
        barcode: {names[c]: int(row[c]) for c in np.flatnonzero(row)}
        for barcode, row in zip(section.table.obs_names, counts, strict=True)
    }


def test_a_cell_counts_as_its_first_pixel_says_in_the_square_of_its_centroid(crc: Cohort) -> None:
    section = crc["reg001_A"]
    assert counted(section) == {
        "0x0": {"T cells": 1, "B cells": 1},
        "0x1": {"Tumor cells": 1},
        "1x0": {"Background": 1},
        "1x1": {"Granulocytes": 1},
    }
    assert dict(zip(section.table.obs_names, section.labels, strict=True))["1x0"] == ""
    assert section.patient == "reg001"
    assert section.info.n_genes == 0
    assert "left out 2 cells" in section.info.source["notes"][0]


def test_the_encoder_of_the_release_reads_224_native_pixels_of_a_section_read_as_it_does(crc: Cohort) -> None:
    section, image = crc["reg001_A"], pixels(3 * G, 3 * G)
    assert section.image_info().mpp == 0.5
    assert "whatever they are" in section.image_info().mpp_source
    for row, name in enumerate(section.table.obs_names):
        y, x = (int(v) * G for v in name.split("x"))
        window = section.location_windows().read(row, G, 0.5)
        np.testing.assert_array_equal(window, image[y : y + G, x : x + G])


def test_counts_of_cells_are_part_of_the_digest(cores: Path, crc: Cohort, tmp_path: Path) -> None:
    maps = blank(3 * G, 3 * G)
    for number, (kind, y, x) in enumerate([(5, 0, 0), (1, 0, 1), (5, 1, 0), (5, 1, 1), (12, 2, 2)], start=1):
        cell(maps, number, kind, y * G + 60 + 9 * number, x * G + 60)  # one tumour cell fewer beside a T cell
    write_core(tmp_path / "in" / "reg002_B.hdf", pixels(3 * G, 3 * G, seed=1), maps, bits=8)
    read([tmp_path / "in"], out=tmp_path / "out", platform="pathocell", patient="P", compat="release")
    other = Cohort.open(tmp_path / "out")["reg002_B"]
    assert list(other.labels) == list(crc["reg002_B"].labels)
    assert other.info.table != crc["reg002_B"].info.table


# ---- the other providers


def read_one(platform: str, source: Path, scratch: Path, number: int = 0, **options: Any) -> Any:
    """The draft of one section, as something that looks like a section."""
    scratch.mkdir(parents=True, exist_ok=True)
    given = ReadOptions(scratch=scratch, patient="P", **options)
    reader = find_reader(platform)
    draft = reader.read(reader.discover(source, given)[number], given)
    return SimpleNamespace(id=draft.section_id, table=draft.table, draft=draft, labels=draft.table.obs["label"])


@pytest.fixture(scope="module")
def lizards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of 500 x 300 px: six tiles, the lower ones and the right ones flush with the edge."""
    folder = tmp_path_factory.mktemp("lizard")
    images, labels = folder / "Lizard_Images1" / "Lizard_Images1", folder / "Lizard_Labels" / "Lizard_Labels" / "Labels"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    Image.fromarray(pixels(300, 500)).save(images / "crag_1.png")
    cells, _ = blank(300, 500)
    for number, (y, x) in {7: (10, 10), 3: (100, 300), 9: (290, 490)}.items():
        cells[y : y + 4, x : x + 4] = number
    classes = np.array([[2], [4], [6]])  # of 3, 7 and 9
    savemat(labels / "crag_1.mat", {"inst_map": cells, "id": np.array([[3], [7], [9]]), "class": classes})
    (labels.parent / "info.csv").write_text("Filename,Source,Split\ncrag_1,CRAG,3\n")
    return folder


def test_lizard_is_read_in_place_and_laid_out_anew_only_as_the_release_does(lizards: Path, tmp_path: Path) -> None:
    section = read_one("lizard", lizards, tmp_path)
    assert counted(section) == {"0x0": {"Plasma": 1}, "0x1": {"Epithelial": 1}}  # row 1 and column 2 hold the last
    assert set(section.table.obs["set"]) == {"test"}
    assert section.draft.location_um == 112.0
    # Tiles start at 0, 224, 276 and at 0, 76; by number in a grid of 2 x 3, as they would lie anyhow.
    # 3 lies in tiles 1, 2, 4 and 5, of which 1 and 2 of the first row; column 2 and row 1 fall away.
    release = read_one("lizard", lizards, tmp_path / "release", compat="release")
    assert counted(release) == {"0x0": {"Plasma": 1}, "0x1": {"Epithelial": 1}}
    assert release.draft.images[0].mpp == 0.5
    assert [montage.near_square(n) for n in (1, 2, 4, 5, 6, 7, 50)] == [
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 3),
        (2, 3),
        (3, 3),
        (7, 8),
    ]
    whole = Nuclei(pixels(300, 500), *(a.astype(np.int64) for a in blank(300, 500)))
    cut = montage.tiles(whole, G, where="a test")
    assert len(cut) == 6
    np.testing.assert_array_equal(cut[5].image, whole.image[76:, 276:])
    laid = montage.montage(cut[:5])
    np.testing.assert_array_equal(laid.image[G:, G : 2 * G], cut[4].image)
    assert not laid.image[G:, 2 * G :].any()


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven samples of fold 2, each with one dead cell; the third also has an epithelial and a neoplastic one."""
    folder = tmp_path_factory.mktemp("pannuke")
    images, masks = np.zeros((11, 256, 256, 3)), np.zeros((11, 256, 256, 6))
    masks[..., 5] = 1
    for i in range(11):
        images[i] = 20 * i
    for i, (y, x, channel, number) in [
        *((i, (100, 10, 3, 5)) for i in range(11)),
        (2, (10, 100, 4, 5)),
        (2, (100, 120, 0, 1)),
    ]:
        masks[i, y : y + 4, x : x + 4, channel] = number
        masks[i, y : y + 4, x : x + 4, 5] = 0
    for name, array in (("images/fold2/images", images), ("masks/fold2/masks", masks)):
        path = folder / "fold2" / f"{name}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, array)
    np.save(folder / "fold2" / "images" / "fold2" / "types.npy", np.array([f"organ {i}" for i in range(11)]))
    return folder


def test_pannuke_samples_stand_apart_unless_laid_out_as_the_release_does(folds: Path, tmp_path: Path) -> None:
    section = read_one("pannuke", folds, tmp_path)
    assert section.id == "fold2_batch_00000"
    found = counted(section)
    # By name as text: 0, 1, 10, 2, …; 2 is the fourth, at the end of the first of rows of 4.
    assert found.pop("0x3") == {"Epithelial": 1, "Dead Cells": 1, "Neoplastic cells": 1}
    assert list(found.values()) == [{"Dead Cells": 1}] * 10
    assert list(section.table.obs["tissue"])[:4] == ["organ 0", "organ 1", "organ 10", "organ 2"]
    assert (section.draft.location_um, section.draft.pitch_um) == (64.0, 128.0)
    # Four tiles a sample that overlap: a cell in the middle is in all four. 2 x 4 columns, 2 x 3 rows, less the last.
    release = read_one("pannuke", folds, tmp_path / "release", compat="release")
    assert release.draft.images[0].mpp == 0.5
    found = counted(release)
    assert set(found) <= {f"{y}x{x}" for y in range(5) for x in range(7)}
    assert found["0x6"] == {"Epithelial": 1, "Dead Cells": 1, "Neoplastic cells": 1}
    assert found["1x6"] == {"Dead Cells": 1, "Neoplastic cells": 1}
    assert release.table.obs["tissue"]["1x6"] == "organ 2"
    assert set(release.table.obs["set"]) == {"test"}


def test_files_that_are_not_what_they_say_are_refused(cores: Path, lizards: Path, folds: Path, tmp_path: Path) -> None:
    core = tmp_path / "cores" / "reg001_A.hdf"
    write_core(core, pixels(40, 40), (np.ones((40, 40)), np.full((40, 40), 15)))
    with pytest.raises(SourceError, match="no name"):
        read_one("pathocell", core.parent, tmp_path / "s")
    with h5py.File(core, "a") as file:
        del file["gt_inst"]
        file["gt_inst"] = h5py.ExternalLink(str(cores / "pathocell_hdf" / "reg001_A.hdf"), "gt_inst")
    with pytest.raises(SourceError, match="no 'gt_inst' of its own"):
        read_one("pathocell", core.parent, tmp_path / "s")
    core.write_bytes(b"not HDF5")
    with pytest.raises(SourceError, match="not readable as HDF5"):
        read_one("pathocell", core.parent, tmp_path / "s")
    labels = tmp_path / "a.mat"
    savemat(labels, {"inst_map": np.array([[0, 1, 2]]), "id": np.array([[1]]), "class": np.array([[2]])})
    with pytest.raises(SourceError, match="no class"):
        lizard.read_labels(labels)
    labels.write_bytes((next(lizards.rglob("*.mat"))).read_bytes()[:400])
    with pytest.raises(SourceError, match="not readable|it has no"):
        lizard.read_labels(labels)
    types = tmp_path / "types.npy"
    np.save(types, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="not readable"):
        pannuke._loaded(types)
    with pytest.raises(RecipeError, match="declares 0.5"):
        read_one("lizard", lizards, tmp_path / "s", compat="release", mpp=0.25)
    with pytest.raises(ContractError, match="patient is not known"):
        reader, options = find_reader("pannuke"), ReadOptions(scratch=tmp_path)
        reader.read(reader.discover(folds, options)[0], options)


# ---- the protocols


class Words:
    """Scores by hand: the embedding of a location is its scores, and each word is an axis."""

    modalities = ("image", "text")
    training_sections = ()

    def __init__(self, scores: dict[str, Any]) -> None:
        self.scores, self.asked = scores, []

    def embed(self, section: Any, modality: str) -> tuple[np.ndarray, np.ndarray]:
        assert modality == "image"
        values = np.asarray(self.scores[section.id], dtype=np.float64)
        last = np.sqrt(1 - (values**2).sum(axis=1, keepdims=True))  # so that every location has length 1
        return np.hstack([values, last]), np.ones(len(values), bool)

    pooled = embed

    def embed_text(self, texts: list[str]) -> np.ndarray:
        self.asked = list(texts)
        return np.eye(len(texts), len(texts) + 1)


def sections(counts: dict[str, Any], names: tuple[str, ...], **obs: Any) -> Trial:
    """A trial of sections that hold counts (n, classes) alone, the background first."""
    made = []
    for name, rows in counts.items():
        n = len(rows)
        table = SimpleNamespace(
            obsm={CELLS: np.asarray(rows)},
            uns={"cell_classes": names},
            obs=pd.DataFrame({k: v[:n] for k, v in obs.items()}),
        )
        info = SimpleNamespace(pictures=None, source={"compat": "release"})
        centres = np.stack([np.arange(n), np.zeros(n)], axis=1) * 112.0
        made.append(SimpleNamespace(id=name, patient=f"P{name}", table=table, info=info, centres_um=centres, labels=[]))
    return Trial(train=(), test=tuple(made), patients={s.id: s.patient for s in made}, split="all tested")


def values(rows: list[Any], aggregation: str) -> dict[str, float | None]:
    return {r.group: r.value for r in rows if r.aggregation == aggregation and r.metric == "auroc"}


def test_crc_takes_auroc_within_images_then_over_images_then_over_classes(crc: Cohort) -> None:
    trial = Trial(train=(), test=tuple(crc), patients=crc.patients, split="all tested")
    scores = {name: np.zeros((4, len(CRC))) for name in ("reg001_A", "reg002_B")}
    t, b, tumour = (CRC.index(c) for c in ("T cells", "B cells", "Tumor cells"))
    # Squares 0x0, 0x1, 1x0, 1x1. T cells: the first of reg001_A; all but the second of reg002_B.
    scores["reg001_A"][:, t] = [0.3, 0.1, 0.2, 0.4]  # 2 of 3 pairs
    scores["reg002_B"][:, t] = [0.1, 0.2, 0.2, 0.3]  # wins, a tie and a loss: 1.5 of 3
    scores["reg001_A"][:, b] = [0.5, 0.1, 0.1, 0.1]  # 3 of 3
    scores["reg002_B"][:, b] = [0.5, 0.1, 0.1, 0.1]  # the second is the one: 1 of 3, both others tie
    scores["reg001_A"][:, tumour] = [0.1, 0.4, 0.3, 0.2]  # 3 of 3
    scores["reg002_B"][:, tumour] = [0.4, 0.3, 0.2, 0.1]  # 0 of 3
    model = Words(scores)
    subject = Subject("toy", model, training_patients=("somebody else",))
    elsewhere = protocol("spatialwhisperer-crc").run(subject, trial)
    # Names of another cohort do not say who is who.
    assert {r.level for r in elsewhere} == {"within-patient"}
    assert all(UNKNOWN in r.transductive for r in elsewhere)
    trial = replace(trial, patients={**trial.patients, "not tested": "somebody else"})
    rows = protocol("spatialwhisperer-crc").run(subject, trial)
    per_class = values(rows, "per-class")
    assert per_class["T cells"] == pytest.approx((2 / 3 + 1.5 / 3) / 2)
    assert per_class["B cells"] == pytest.approx((1 + 1 / 3) / 2)
    assert per_class["Tumor cells"] == pytest.approx(0.5)
    assert per_class["Granulocytes"] == 0.5  # no image but reg001_A has them, and all scores tie
    assert per_class["NK cells"] is None
    assert values(rows, "macro")["all"] == pytest.approx(np.mean([7 / 12, 2 / 3, 0.5, 0.5]))
    assert model.asked == list(CRC)
    assert {(r.level, r.compat, r.source) for r in rows} == {("patient", "release", "measured")}
    assert all(r.chance == 0.5 for r in rows)


def test_lizard_and_pannuke_add_up_groups_and_leave_out_patches_of_dropped_classes() -> None:
    #            bg  neu epi lym pla eos con
    counts = [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1], [9, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 2, 0, 0]]
    scores = np.zeros((4, 6))
    scores[:, 0] = [0.5, 0.0, 0.3, 0.0]  # neutrophil
    scores[:, 2] = [0.0, 0.4, 0.0, 0.0]  # lymphocyte: either alone is 1/2 right, the sum of both wholly
    scores[:, 1] = [0.1, 0.3, 0.2, 0.9]  # epithelial: the plasma patch would take a pair
    trial = sections({"a": counts}, lizard.CLASSES)
    rows = protocol("spatialwhisperer-lizard").run(Subject("toy", Words({"a": scores})), trial)
    assert values(rows, "per-class") == {"Epithelial": 0.5, "Leukocyte": 1.0, "Fibroblast": 0.5}
    assert {r.level for r in rows} == {"within-patient"}
    assert all(UNKNOWN in r.transductive for r in rows)
    #            bg  epi dead con inf neo
    counts = [[0, 0, 2, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1]]
    scores = np.zeros((4, 5))
    scores[:, 4] = [0.0, 0.3, 0.1, 0.5]
    trial = sections({"a": counts}, pannuke.CLASSES, set=["test", "test", "train", "test"])
    model = Words({"a": scores})
    rows = protocol("spatialwhisperer-pannuke").run(Subject("toy", model), trial)
    assert values(rows, "per-class") == {
        "Epithelial": 0.5, "Connective/Soft tissue cells": None, "Inflammatory": 0.5, "Neoplastic cells": 1.0
    }  # fmt: skip
    assert {r.n for r in rows if r.aggregation == "macro"} == {2}  # one is mostly dead, one of another set
    assert model.asked == ["epithelial", "dead cells", "fibroblasts", "leukocytes", "cancer cells"]


def test_skin_is_judged_over_all_test_tiles_at_once() -> None:
    assert tuple(kriegsmann.CLASSES.values()) == SKIN
    trial = sections({"a": [[0]] * 3, "b": [[0]] * 2}, ("",), set=["Test", "Test", "Train"])
    for section in trial.test:
        section.centres_um = np.full_like(section.centres_um, np.nan)  # tiles have no place
    trial.test[0].labels, trial.test[1].labels = np.array(["Dermis", "Vessels", "Vessels"]), np.array(["Dermis"] * 2)
    scores = {"a": np.zeros((3, 16)), "b": np.zeros((2, 16))}
    scores["a"][:, 1], scores["b"][:, 1] = [0.5, 0.3, 0.9], [0.4, 0.1]  # Dermis 0.5, 0.4, 0.1 over Vessels 0.3
    rows = protocol("spatialwhisperer-skin").run(Subject("toy", Words(scores)), trial)
    assert {r.aggregation for r in rows} == {"pooled"}
    assert values(rows, "pooled")["Dermis"] == pytest.approx(2 / 3)
    assert values(rows, "pooled")["Melanoma"] is None


def test_models_of_random_towers_and_cells_of_other_sets_are_refused(crc: Cohort) -> None:
    trial = Trial(train=(), test=tuple(crc), patients=crc.patients, split="all tested")
    subject = Subject("toy", Words({s: np.zeros((4, 13)) for s in crc.ids}))
    with pytest.raises(ContractError, match="random weights"):
        protocol("spatialwhisperer-crc").run(replace(subject, evidence="architecture-only"), trial)
    with pytest.raises(ContractError, match="the cells are"):
        protocol("spatialwhisperer-pannuke").run(subject, trial)
    towers = {"image": SimpleNamespace(weights=None), "text": SimpleNamespace(weights="a run of ours")}
    model = SimpleNamespace(
        locked=("image", "text"),
        config=SimpleNamespace(towers=towers),
        encoder=lambda m: SimpleNamespace(card=SimpleNamespace(weights="random")),
    )
    assert untrained(SimpleNamespace(model=model)) == ["image"]


def test_bench_run_tests_every_section_without_a_split_beside_what_is_published(
    crc: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triglyph.workflows.bench_subjects as subjects
    from triglyph.metrics.result import read_results

    model = Words({s: np.zeros((4, 13)) for s in crc.ids})
    monkeypatch.setattr(subjects, "judged", lambda *_, **__: Judged(lambda _: Subject("toy", model)))
    out = bench_run("spatialwhisperer-crc", cohort=crc.path, out=tmp_path / "out", quiet=True)
    rows = read_results(out)
    macro = {r.model: r for r in rows if r.aggregation == "macro"}
    measured = [r for r in macro.values() if r.source == "measured"]
    assert [(r.model, r.value) for r in measured] == [("toy", 0.5)]
    assert len(macro) == 13
    published = macro["SpatialWhisperer, seed 0 (released), published"]
    assert (published.value, published.source) == (0.630, "published")
    assert published.level == measured[0].level == "within-patient"
    of_seed_0 = [r.value for r in rows if r.source == "published" and r.aggregation == "per-class"]
    assert np.mean(of_seed_0) == pytest.approx(0.630, abs=5e-4)
    # One line of the table holds both.
    line = next(x for x in (out / "table.md").read_text().splitlines() if "| macro |" in x)
    assert line.count("|") == 5 + 13 + 1
    assert "0.630" in line
    # Other constants are another protocol, which nobody has published.
    changed = bench_run("spatialwhisperer-crc", cohort=crc.path, out=tmp_path / "2", set=["subset=train"], quiet=True)
    assert {r.source for r in read_results(changed)} == {"measured"}
    with pytest.raises(RecipeError, match="every section"):
        bench_run("spatialwhisperer-crc", cohort=crc.path, out=tmp_path / "3", split="any")


def test_sections_that_an_encoder_has_seen_are_refused_or_stamped_without_a_split_too(
    crc: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triglyph.workflows.audit as audit
    import triglyph.workflows.bench_subjects as subjects
    from triglyph.metrics.result import read_results
    from triglyph.storage import write_json

    write_json(tmp_path / "run/manifest.json", {"recipe": "toy", "encoders": {"image": {"encoder": "seer"}}})
    monkeypatch.setattr(audit, "_cards", lambda _: {"seer": {"name": "seer", "seen": ["reg001_A"]}})
    model = Words({s: np.zeros((4, 13)) for s in crc.ids})
    monkeypatch.setattr(subjects, "judged", lambda *_, **__: Judged(lambda _: Subject("toy", model)))
    asked: dict[str, Any] = {"cohort": crc.path, "model": tmp_path / "run", "quiet": True}
    with pytest.raises(SplitError, match="seen-by-encoder: seer was trained on sections tested here: reg001_A"):
        bench_run("spatialwhisperer-crc", out=tmp_path / "out", **asked)
    out = bench_run("spatialwhisperer-crc", out=tmp_path / "out", allow=["seen-by-encoder"], **asked)
    note = "audit failed and was allowed: seen-by-encoder"
    assert {(r.source, note in r.transductive) for r in read_results(out)} == {("measured", True), ("published", False)}


def test_classes_asked_for_are_those_that_the_readers_know() -> None:
    assert set(CRC) == set(pathocell.CLASSES) - {"Background", "Other cells"}
    for name, classes in (("lizard", lizard.CLASSES), ("pannuke", pannuke.CLASSES)):
        assert set(protocol(f"spatialwhisperer-{name}").queries) == set(classes[1:])
