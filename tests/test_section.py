"""Section: written once, whole or not at all; read back as it was; joined with its embeddings."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import small
from triglyph.errors import ContractError, SourceError, StorageError
from triglyph.tissue.frames import Affine
from triglyph.tissue.section import Section


def test_what_is_written_is_read_back(tmp_path):
    draft = small.draft(folder=tmp_path)
    section = Section.write(draft, tmp_path / "out" / "S1")
    again = Section.open(tmp_path / "out" / "S1")
    assert (again.table.X != draft.table.X).nnz == 0
    assert np.issubdtype(again.table.X.dtype, np.integer)
    assert list(again.table.obs_names) == list(draft.table.obs_names)
    np.testing.assert_array_equal(again.centres_um, draft.table.obsm["spatial"])
    assert again.captions == list(draft.table.obs["caption"])
    assert (again.labels == draft.table.obs["label"].to_numpy()).all()
    assert again.info == section.info
    counts, symbols, ensembl, measured = again.expression()
    assert counts.sum() == draft.table.X.sum()
    assert symbols == small.GENES
    assert set(ensembl) == {""}
    assert measured.all()


def test_strings_on_disk_are_plain_so_that_one_store_reads_everywhere(tmp_path):
    section = Section.write(small.draft(), tmp_path / "S1")
    for found in (tmp_path / "S1" / "section.zarr").rglob("zarr.json"):
        encoding = json.loads(found.read_text()).get("attributes", {}).get("encoding-type", "")
        assert not encoding.startswith("nullable"), found
    assert section.table.obs["caption"].dtype == object


def test_writing_twice_gives_the_same_digests(tmp_path):
    a = Section.write(small.draft(folder=tmp_path), tmp_path / "a")
    b = Section.write(small.draft(folder=tmp_path), tmp_path / "b")
    c = Section.write(small.draft(folder=tmp_path, seed=1), tmp_path / "c")
    assert a.info.table == b.info.table != c.info.table
    assert a.info.locations == b.info.locations


def test_images_stay_by_reference_or_move_in_from_scratch(tmp_path):
    outside = Section.write(small.draft("A", folder=tmp_path), tmp_path / "cohort" / "A")
    assert outside.info.images[0].path == "../../A.tif"
    assert outside.image().read((200, 200), 100, 64).shape == (64, 64, 3)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inside = Section.write(small.draft("B", folder=scratch), tmp_path / "cohort" / "B", scratch=scratch)
    assert inside.info.images[0].path == "images/B.tif"
    shutil.move(tmp_path / "cohort", tmp_path / "deeper-cohort")
    moved = Section.open(tmp_path / "deeper-cohort" / "B")
    moved.verify()
    assert moved.image().mpp == pytest.approx(0.5)


def test_a_changed_or_missing_image_is_noticed(tmp_path):
    section = Section.write(small.draft(folder=tmp_path), tmp_path / "out" / "S1")
    section.verify()
    small.write_slide(tmp_path / "S1.tif", seed=9)
    with pytest.raises(SourceError, match="not the one that was read"):
        section.verify()
    (tmp_path / "S1.tif").unlink()
    with pytest.raises(SourceError, match=r"S1\.tif"):
        section.image()


def test_a_preview_is_not_taken_for_the_slide(tmp_path):
    draft = small.draft(folder=tmp_path)
    draft.images = [type(draft.images[0])(**{**vars(draft.images[0]), "role": "preview"})]
    section = Section.write(draft, tmp_path / "out" / "S1")
    assert not section.has_image()
    with pytest.raises(SourceError, match="only a preview"):
        section.image()
    assert section.image(allow_preview=True).mpp == pytest.approx(0.5)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("triglyph.tissue.section.write_table", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StorageError, match="space"):
        Section.write(small.draft(), tmp_path / "out" / "S1")
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".S1.lock")] == []


def test_an_existing_section_is_never_overwritten(tmp_path):
    Section.write(small.draft(), tmp_path / "S1")
    with pytest.raises(StorageError, match="already written"):
        Section.write(small.draft(), tmp_path / "S1")


def test_embeddings_are_immutable_and_joined_with_their_provenance(tmp_path):
    section = Section.write(small.draft(), tmp_path / "S1")
    values = np.random.default_rng(0).normal(size=(section.n_locations, 8)).astype(np.float32)
    present = np.ones(section.n_locations, bool)
    present[3] = False
    section.embeddings.write("0123456789abcdef", values, present=present, card={"name": "org/model", "mpp": 0.5})
    with pytest.raises(StorageError, match="already"):
        section.embeddings.write("0123456789abcdef", values, present=present, card={})
    table = section.to_anndata()
    np.testing.assert_array_equal(table.obsm["org-model"][present], values[present])
    assert np.isnan(table.obsm["org-model"][3]).all()
    assert table.uns["triglyph"]["embeddings"]["org-model"]["fingerprint"] == "0123456789abcdef"
    table.write_h5ad(tmp_path / "out.h5ad")
    data = section.to_spatialdata()
    assert "org-model" in data.tables["table"].obsm
    assert set(data.shapes) == {"locations"}
    assert "org-model" not in section.table.obsm


def test_an_interrupted_embedding_leaves_nothing(tmp_path):
    section = Section.write(small.draft(), tmp_path / "S1")

    def interrupted() -> None:
        shape = (section.n_locations, 4)
        with section.embeddings.writing("00000000deadbeef", shape=shape, dtype=np.float32, card={}) as (values, _):
            values[:3] = 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert section.embeddings.names() == []
    assert not section.embeddings.has("00000000deadbeef")


def test_embeddings_that_are_not_finite_or_of_other_rows_are_refused(tmp_path):
    section = Section.write(small.draft(), tmp_path / "S1")
    present = np.ones(section.n_locations, bool)
    values = np.zeros((section.n_locations, 2), np.float32)
    values[5, 1] = np.nan
    with pytest.raises(ContractError, match="row 5"):
        section.embeddings.write("00000000deadbeef", values, present=present, card={})
    with pytest.raises(ContractError, match="rows"):
        section.embeddings.write("00000000deadbeef", values[:-1], present=present[:-1], card={})
    with pytest.raises(ContractError, match="fingerprint"):
        section.embeddings.has("../../etc")


def test_embeddings_of_another_section_are_refused(tmp_path):
    one = Section.write(small.draft("S1"), tmp_path / "S1")
    other = small.draft("S2")
    other.table.obs_names = [f"b{i}" for i in range(other.table.n_obs)]
    two = Section.write(other, tmp_path / "S2")
    values = np.zeros((one.n_locations, 2), np.float32)
    one.embeddings.write("00000000deadbeef", values, present=np.ones(one.n_locations, bool), card={})
    shutil.copytree(tmp_path / "S1" / "embeddings", tmp_path / "S2" / "embeddings")
    with pytest.raises(ContractError, match="other locations"):
        two.embeddings.read("00000000deadbeef")


def test_affines_compose_and_invert():
    rng = np.random.default_rng(0)
    a = Affine.from_matrix(rng.normal(size=(2, 3)))
    b = Affine.from_matrix(rng.normal(size=(2, 3)))
    xy = rng.normal(size=(50, 2))
    np.testing.assert_allclose(a.then(b)(xy), b(a(xy)))
    np.testing.assert_allclose(a.inverse()(a(xy)), xy)
    assert Affine.scale(0.4).mpp == pytest.approx(0.4)
