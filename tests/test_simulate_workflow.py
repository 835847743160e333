"""`triglyph simulate` as a whole: layouts, growing, kills, worker counts, and worlds that must not mix."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile

import children
from triglyph.errors import ContractError, RecipeError
from triglyph.storage import file_digest
from triglyph.tissue.checks import check_draft
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import ReadOptions, find_reader
from triglyph.tissue.section import Section
from triglyph.tissue.simulate.presets import DIFFICULTIES, preset, preset_names
from triglyph.tissue.simulate.registration import check_registration, registration_error
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.workflows import simulate as workflow
from triglyph.workflows.read import read as read_folders
from triglyph.workflows.simulate import WORLD, simulate

SIDE = "anatomy.side_um=500"
REAL = {"preset": "her2st-like", "set": ["anatomy.side_um=700", "molecules.filler_genes=50"]}
ST = [
    "anatomy.side_um=900", "spots.platform=st", "spots.lattice=square", "spots.pitch_um=200", "spots.diameter_um=100",
    "spots.margin_um=10",
]  # fmt: skip
HD = ["spots.platform=visium-hd", "spots.lattice=square", "spots.pitch_um=8", "spots.diameter_um=8"]


def make(out: Path, **options: Any) -> Path:
    return simulate(**{"preset": "tiny", "patients": 1, "set": [SIDE], "workers": 1, "out": out, **options})


def files(folder: Path) -> dict[str, str]:
    """Digest of every file that a user sees."""
    there = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in there}


def times(folder: Path) -> dict[str, int]:
    """When each file of a section was written."""
    return {str(p): p.stat().st_mtime_ns for p in (folder / "sections").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cohort") / "c")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("vendor") / "v", layout="vendor", set=[SIDE, "protein.channels=[DAPI,CD3]"])


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that the test may change: `cohort`, or the fixture named by the parameter."""
    source: Path = request.getfixturevalue(getattr(request, "param", "cohort"))
    return Path(shutil.copytree(source, tmp_path / "copy"))


# ---- the vendor's layout


def read(platform: str, folder: Path, tmp_path: Path, **options: Any) -> SectionDraft:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    reader, said = find_reader(platform), ReadOptions(scratch=tmp_path / "scratch", **options)
    (found,) = reader.discover(folder, said)
    return check_draft(reader.read(found, said), where=folder)


def test_a_vendors_folder_is_read_and_its_truth_lies_beside_it_row_by_row(vendor, tmp_path):
    listed = pd.read_csv(vendor / "sections.csv")
    assert listed.columns.tolist() == ["section", "patient", "platform", "vendor_name"]
    assert listed["section"].tolist() == ["P01-S1", "P01-S2"]
    for section in listed["section"]:
        draft = read("visium", vendor / "sections" / section, tmp_path, patient="P01")
        truth = ad.read_h5ad(vendor / "truth" / f"{section}.h5ad")
        rows = {tuple(place): i for i, place in enumerate(truth.obs[["array_row", "array_col"]].to_numpy())}
        order = [rows[tuple(place)] for place in draft.table.obs[["array_row", "array_col"]].to_numpy()]
        assert sorted(order) == list(range(truth.n_obs))
        assert (truth.X[order] != draft.table.X).nnz == 0
        assert truth.layers["truth_expected"].shape == truth.shape
        for key in (k for k in truth.obsm if k in truth.uns):
            assert truth.obsm[key].shape[1] == len(truth.uns[key])
        assert {"truth_composition", "truth_states", "truth_protein"} <= set(truth.uns)
        assert draft.images[0].mpp == pytest.approx(truth.uns["truth_mpp"], rel=0.02)


def test_the_truth_is_that_of_the_specimen(vendor):
    truth = ad.read_h5ad(vendor / "truth" / "P01-S2.h5ad")
    table = Specimen(preset("tiny", overrides=[SIDE, "protein.channels=[DAPI,CD3]"]), 0, 1).table
    assert (truth.layers["truth_expected"] == table.layers["truth_expected"]).all()
    assert all((truth.obsm[key] == table.obsm[key]).all() for key in table.obsm)
    assert truth.obs["caption_held_out"].astype(str).tolist() == table.obs["caption_held_out"].tolist()


def test_nothing_in_a_vendors_own_folder_is_truth(vendor):
    words = (b"truth_", b"caption", b"phenotype")
    for path in (vendor / "sections").rglob("*"):
        if path.is_file():
            assert not any(word in path.read_bytes() for word in words), path


@pytest.mark.parametrize("layout", ["cohort", "vendor"])
def test_the_protein_image_is_written_in_both_layouts(layout, vendor, tmp_path):
    options = [SIDE, "protein.channels=[DAPI,CD3]"]
    out = vendor if layout == "vendor" else make(tmp_path / "c", set=options)
    assert {p.name for p in (out / "protein").glob("[!.]*")} == {"P01-S1.ome.tif", "P01-S2.ome.tif"}
    assert tifffile.imread(out / "protein" / "P01-S1.ome.tif").shape[0] == 2
    if layout == "cohort":
        section = Cohort.open(out)["P01-S1"]
        assert section.info.source["truth_protein"] == ["DAPI", "CD3"]
        # The same picture, whatever the layout.
        assert file_digest(out / "protein" / "P01-S1.ome.tif") == file_digest(vendor / "protein" / "P01-S1.ome.tif")


@pytest.mark.parametrize("copy", ["vendor"], indirect=True)
def test_a_vendors_folder_that_is_missing_is_made_again_and_the_rest_is_kept(copy, vendor):
    shutil.rmtree(copy / "sections" / "P01-S1")
    before = times(copy)
    (copy / "truth" / "P01-S1.h5ad").unlink()
    make(copy, layout="vendor", set=[SIDE, "protein.channels=[DAPI,CD3]"])
    assert files(copy) == files(vendor)
    assert {k: v for k, v in times(copy).items() if k in before} == before


def test_a_section_that_its_vendor_names_otherwise_is_found_by_the_list(tmp_path):
    out = make(tmp_path / "v", layout="vendor", patients=2, set=ST)
    listed = pd.read_csv(out / "sections.csv").set_index("section")
    assert listed["vendor_name"].to_dict() == {"P01-S1": "A1", "P01-S2": "A2", "P02-S1": "B1"}
    assert listed["patient"].tolist() == ["P01", "P01", "P02"]
    for section, name in listed["vendor_name"].items():
        assert read("st", out / "sections" / section, tmp_path).section_id == name
    sources, back = sorted((out / "sections").glob("[!.]*")), tmp_path / "back"
    assert read_folders(sources, out=back, platform="st", patients=out / "sections.csv").exit_code == 0
    assert Cohort.open(back).patients == dict(zip(listed["vendor_name"], listed["patient"], strict=True))
    # With fewer patients nothing is forgotten.
    make(out, layout="vendor", set=ST)
    assert pd.read_csv(out / "sections.csv")["section"].tolist() == list(listed.index)


def test_donors_have_no_vendor(tmp_path):
    with pytest.raises(RecipeError, match="no vendor"):
        make(tmp_path / "v", layout="vendor", donors=1)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ([SIDE, "spots.pitch_um=150"], "a hexagonal lattice of 150 µm, .* is no Visium array"),
        ([SIDE, "spots.lattice=square"], "a square lattice of 100 µm, .* is no Visium array"),
        (["anatomy.side_um=9000"], "103 x 178, is no Visium array"),
        ([*ST, "spots.pitch_um=150"], "a square lattice of 150 µm is no array of Spatial Transcriptomics"),
        ([*HD, "anatomy.side_um=95"], "95 µm between margins of 40 µm have no room for a bin of 16 µm"),
    ],
)
def test_a_lattice_that_no_vendor_has_is_refused_before_anything_is_written(knobs, message, tmp_path):
    with pytest.raises(RecipeError, match=message) as error:
        make(tmp_path / "v", layout="vendor", set=knobs)
    assert "choose" in str(error.value)
    assert not (tmp_path / "v").exists()


def test_a_cohort_may_have_a_lattice_that_no_vendor_has(tmp_path):
    out = make(tmp_path / "c", set=["anatomy.side_um=300", "spots.pitch_um=120", "sections_per_patient=[1]"])
    assert len(Cohort.open(out)) == 1


# ---- donors, patients, difficulty


def test_a_cohort_grows_by_patients_and_donors_and_what_was_there_stays(copy):
    before, small = times(copy), pd.read_csv(copy / "clinical.csv")
    assert small["patient"].tolist() == ["P01"]
    make(copy, patients=2, donors=2)
    assert Cohort.open(copy).ids == ["D01-S1", "D02-S1", "P01-S1", "P01-S2", "P02-S1"]
    assert {k: v for k, v in times(copy).items() if k in before} == before
    table = pd.read_csv(copy / "clinical.csv")
    assert table["patient"].tolist() == ["P01", "P02"]
    pd.testing.assert_frame_equal(table.iloc[:1], small)
    assert Cohort.open(copy)["D01-S1"].info.images == ()
    make(copy, patients=1)
    assert pd.read_csv(copy / "clinical.csv")["patient"].tolist() == ["P01", "P02"]


def test_difficulty_reaches_the_knobs_that_are_written(tmp_path):
    stated = {}
    for level in ("easy", "hard"):
        out = make(tmp_path / level, difficulty=level)
        stated[level] = json.loads((out / WORLD).read_text())["simulation"]
        assert {s.info.source["config"] for s in Cohort.open(out)} == {
            preset("tiny", difficulty=level, overrides=[SIDE]).digest()
        }
    assert stated["hard"]["molecules"]["dispersion"] == pytest.approx(3 * stated["easy"]["molecules"]["dispersion"])


# ---- worlds that must not mix

OTHERS = {
    "layout": ({}, "layout"),
    "seed": ({"seed": 1}, "is not of preset"),
    "knob": ({"set": [SIDE, "molecules.marker=2.5"]}, "is not of preset"),
    "preset": ({"preset": "demo"}, "is not of preset"),
    "difficulty": ({"difficulty": "hard"}, "is not of preset"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of one section, as each layout has it, and one of a run that was killed before its first."""
    root, found = tmp_path_factory.mktemp("begun"), {}
    runs = {"cohort": only_the_first, "vendor": only_the_first, "nothing but the world": lambda *_: iter(())}
    for name, run in runs.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workflow, "_run", run)
            found[name] = make(root / name, layout=layout_of(name))
    return found


def only_the_first(jobs: list[Any], _: int) -> Any:
    yield workflow.write_section(*jobs[0])


def layout_of(there: str) -> str:
    return "vendor" if there == "vendor" else "cohort"


@pytest.mark.parametrize("other", list(OTHERS))
@pytest.mark.parametrize("there", ["cohort", "vendor", "nothing but the world"])
def test_two_worlds_do_not_mix_in_one_folder(there, other, begun):
    options, match = OTHERS[other]
    layout = layout_of(there)
    if other == "layout":
        options = {"layout": "cohort" if layout == "vendor" else "vendor"}
    before = files(begun[there])
    with pytest.raises(ContractError, match=match) as error:
        make(begun[there], **{"layout": layout, **options})
    assert "--out" in str(error.value)
    assert files(begun[there]) == before


def test_a_folder_of_another_version_is_refused_with_a_mend(copy):
    world = json.loads((copy / WORLD).read_text())
    (copy / WORLD).write_text(json.dumps({**world, "version": world["version"] - 1}))
    with pytest.raises(ContractError, match="version") as error:
        make(copy)
    assert "--out" in str(error.value)


@pytest.mark.parametrize("layout", ["cohort", "vendor"])
def test_a_cohort_that_was_read_is_refused_and_left_alone(layout, copy):
    # What `triglyph read` leaves: sections of somewhere else, and no record of a world.
    for path in (copy / "sections").glob("*/section.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "source": {"reader": "visium"}}))
    for path in (copy / WORLD, copy / ".simulate.lock"):
        path.unlink()
    before = sorted(copy.rglob("*"))
    with pytest.raises(ContractError):
        make(copy, layout=layout)
    assert sorted(copy.rglob("*")) == before


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ContractError, match="a file"):
        make(tmp_path / "out")


# ---- kills and workers


def simulate_and_die(moment: str, out: Path, options: dict[str, Any]) -> None:
    """Simulate, and die at some moment; run in a child."""
    from triglyph.tissue.section import Section
    from triglyph.tissue.simulate import genesets, vendors

    def die_after(owner: Any, name: str, number: int = 1) -> None:
        original, count = getattr(owner, name), 0

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            result = original(*args, **kwargs)
            count += 1
            if count == number:
                children.die()
            return result

        setattr(owner, name, wrapped)

    def first_of_workers(jobs: list[Any], workers: int) -> Any:
        for done in original_run(jobs, workers):
            yield done
            finished.append(done)
            if len(finished) < 2:
                continue
            pids = [process.pid for process in multiprocessing.active_children()]
            (out.parent / "workers.json").write_text(json.dumps(pids))
            children.die()

    original_run, finished = workflow._run, []
    match moment:
        case "half of the gene sets":
            die_after(genesets, "write_gmt", 2)
        case "a section":
            die_after(Section, "write")
        case "the truth of a section":
            die_after(vendors, "write_truth")
        case "all sections":
            workflow._write_clinical = lambda *_: children.die()
        case "two sections by workers":
            workflow._run = first_of_workers
    make(out, **options)


@pytest.mark.parametrize("moment", ["half of the gene sets", "a section", "all sections"])
def test_a_killed_run_started_again_ends_with_the_same_bytes(moment, cohort, tmp_path):
    out = tmp_path / "c"
    assert children.run(simulate_and_die, moment, out, {}) == -9
    assert files(out) != files(cohort)
    make(out)
    assert files(out) == files(cohort)


def test_a_killed_run_of_the_vendors_layout_ends_with_the_same_bytes(vendor, tmp_path):
    options = {"layout": "vendor", "set": [SIDE, "protein.channels=[DAPI,CD3]"]}
    assert children.run(simulate_and_die, "the truth of a section", tmp_path / "v", options) == -9
    assert not list((tmp_path / "v" / "sections").glob("[!.]*"))
    make(tmp_path / "v", **options)
    assert files(tmp_path / "v") == files(vendor)


def test_workers_write_the_bytes_of_one_process_and_do_not_outlive_a_kill(tmp_path):
    one, two = make(tmp_path / "one", **REAL), tmp_path / "two"
    assert children.run(simulate_and_die, "two sections by workers", two, {**REAL, "workers": 2}) == -9
    # A worker that lived on would write into the folder under the next run.
    assert children.gone(two)
    done = [path.parent.name for path in (two / "sections").glob("[!.]*/section.json")]
    assert len(done) >= 2
    for section in done:
        assert files(two / "sections" / section) == files(one / "sections" / section)
    expected = [Section.open(out / "sections" / done[0]).table.layers["truth_expected"] for out in (one, two)]
    assert np.array_equal(*expected)
    make(two, **REAL)
    assert files(two) == files(one)
    assert {"clinical.csv", "genesets/true.gmt", "genesets/truth.csv"} <= set(files(two))


def test_gene_sets_that_are_missing_or_spoiled_are_written_again(copy, cohort):
    (copy / "genesets" / "shuffled.gmt").unlink()
    (copy / "genesets" / "truth.csv").write_text("version\n")
    make(copy)
    assert files(copy) == files(cohort)


def test_a_run_that_waited_for_another_finds_its_work_done(tmp_path, monkeypatch):
    out, alone = tmp_path / "c", workflow._alone

    def other_first(path: Path) -> Any:
        monkeypatch.setattr(workflow, "_alone", alone)
        make(path)
        return alone(path)

    monkeypatch.setattr(workflow, "_alone", other_first)
    make(out)
    assert Cohort.open(out).ids == ["P01-S1", "P01-S2"]


def test_a_run_that_waited_for_another_world_is_refused(tmp_path, monkeypatch):
    out, alone = tmp_path / "c", workflow._alone

    def other_first(path: Path) -> Any:
        monkeypatch.setattr(workflow, "_alone", alone)
        make(path, seed=1)
        return alone(path)

    monkeypatch.setattr(workflow, "_alone", other_first)
    with pytest.raises(ContractError, match="is not of preset"):
        make(out)


# ---- registration


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_keeps_its_locations_on_the_image_at_every_difficulty(name):
    for difficulty in DIFFICULTIES:
        check_registration(preset(name, difficulty=difficulty))


def test_a_registration_error_beyond_the_margin_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match="off the image") as error:
        make(tmp_path / "c", set=[SIDE, "people.registration_um=25"])
    assert "margin_um" in str(error.value)
    assert not (tmp_path / "c").exists()


def test_the_largest_registration_error_that_is_accepted_leaves_locations_on_the_image():
    config = preset("tiny", overrides=["people.registration_um=15", "people.registration_bend_um=10"])
    check_registration(config)
    spots, side = config.spots, config.anatomy.side_um
    room = spots.margin_um + spots.diameter_um / 2
    rim = np.linspace(room, side - room, 9)
    centres = np.array([(x, y) for x in rim for y in rim if {x, y} & {rim[0], rim[-1]}])
    stated = np.concatenate([centres + registration_error(config, p, 0, centres) for p in range(300)])
    assert stated.min() >= 0
    assert stated.max() <= side
