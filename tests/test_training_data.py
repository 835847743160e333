from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import small
from triglyph.encoders import registry
from triglyph.encoders.base import Encoder, Expression
from triglyph.errors import ContractError, RecipeError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.section import Section
from triglyph.training import dataset
from triglyph.training.dataset import Locations, check_without, concat_inputs, training_rows
from triglyph.training.features import cache_windows, encode_rows, encode_section, present

ALL = ("image", "expression", "text")
PAIRS = {("image", "expression"): 1.0, ("image", "text"): 1.0, ("expression", "text"): 1.0}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """S0, S1 with images; S2 without; every section lacks some captions, S1 the counts of one spot."""
    folder = tmp_path_factory.mktemp("data")
    made = Cohort.create(folder / "cohort")
    for p in range(3):
        draft = small.draft(f"S{p}", patient=f"P{p}", folder=folder if p < 2 else None, seed=p)
        if p == 1:
            counts = draft.table.X.tolil()
            counts[5] = 0
            draft.table = ad.AnnData(
                sp.csr_matrix(counts), obs=draft.table.obs, var=draft.table.var, obsm=dict(draft.table.obsm)
            )
        made.add(draft)
    return made


@pytest.fixture(scope="module")
def encoders(cohort: Cohort) -> dict[str, Encoder]:
    torch.manual_seed(0)
    made = {
        "image": registry.build("stain-texture"),
        "expression": registry.build("gene-mlp", dim=8, hidden=8, genes=10),
        "text": registry.build("bert-small", dim=8, depth=1, heads=1, vocabulary_size=64),
    }
    made["expression"].fit([Expression(*cohort[s].expression()) for s in cohort.ids])
    made["text"].fit([[c for c in cohort[s].captions if c] for s in cohort.ids])
    return made


def test_absence_is_of_image_counts_and_captions(cohort: Cohort) -> None:
    assert not present(cohort["S2"], "image").any()
    assert np.flatnonzero(~present(cohort["S1"], "expression")).tolist() == [5]
    assert (present(cohort["S0"], "text") == [bool(c) for c in cohort["S0"].captions]).all()


def test_rows_without_a_pair_are_left_out_and_counted(cohort: Cohort) -> None:
    sections = list(cohort)
    rows = training_rows(sections, ALL, PAIRS)
    captioned = sum(map(bool, cohort["S2"].captions))
    assert rows.counts()["left_out"] == 36 - captioned
    assert rows.counts()["image"] == 72
    assert rows.counts()["expression"] == 36 + 35 + captioned
    # S1 row 5 has an image and a caption or not; whichever, it is in the right group.
    here = (rows.section == 1) & (rows.location == 5)
    assert rows.groups[here].tolist() in (["image+text"], [])
    only = training_rows(sections, ("image", "expression"), {("image", "expression"): 1.0})
    assert len(only) == 71
    assert set(only.groups) == {"image+expression"}


def test_held_out_locations_of_a_within_section_split_are_not_trained_on(cohort: Cohort) -> None:
    section = cohort["S0"]
    out = section.table.obs_names[:10].tolist()
    rows = training_rows([section], ("image", "expression"), {("image", "expression"): 1.0}, held_out={"S0": out})
    assert rows.location.tolist() == list(range(10, 36))
    with pytest.raises(ContractError, match="held-out barcodes"):
        training_rows([section], ("image", "expression"), {("image", "expression"): 1.0}, held_out={"S0": ["nowhere"]})


def test_no_rows_at_all_is_a_clear_error(cohort: Cohort) -> None:
    with pytest.raises(ContractError, match="no location has image and text"):
        training_rows([cohort["S2"]], ("image", "text"), {("image", "text"): 1.0})


def test_a_batch_holds_what_each_row_has(cohort: Cohort, encoders: dict[str, Encoder]) -> None:
    rows = training_rows(list(cohort), ALL, PAIRS)
    prints = {"image": encoders["image"].fingerprint()}
    for section in cohort:
        encode_section(section, encoders["image"])
    data = Locations(rows, encoders, cached=prints)
    index = np.array([80, 3, 40, 0, 77])
    batch = data[index]
    assert batch["n"] == 5
    assert batch["index"].tolist() == index.tolist()
    for modality in ALL:
        wanted = [i for i, r in enumerate(index) if rows.present[modality][r]]
        assert batch[modality]["rows"].tolist() == wanted
    for i, position in enumerate(batch["image"]["rows"].tolist()):
        r = index[position]
        stored = cohort[f"S{rows.section[r]}"].embeddings.read(prints["image"]).values[rows.location[r]]
        np.testing.assert_array_equal(batch["image"]["features"][i].numpy(), stored)
    for i, position in enumerate(batch["expression"]["rows"].tolist()):
        r = index[position]
        counts, *rest = cohort[f"S{rows.section[r]}"].expression()
        alone = encoders["expression"].prepare(Expression(counts[[rows.location[r]]], *rest))
        np.testing.assert_array_equal(batch["expression"]["values"][i], alone["values"][0])
    captions = [rows.captions[index[p]] for p in batch["text"]["rows"].tolist()]
    tokens = encoders["text"].prepare(captions)
    width = tokens["ids"].shape[1]
    again = batch["text"]["ids"][batch["text"]["copies"]][:, :width]
    torch.testing.assert_close(again * tokens["mask"], tokens["ids"] * tokens["mask"])
    keys = batch["duplicates"]["text"]
    for i in range(5):
        for j in range(5):
            assert bool(keys[i] == keys[j]) == (rows.captions[index[i]] == rows.captions[index[j]])


def test_input_prepared_for_each_batch_equals_input_held_in_memory(
    cohort: Cohort, encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_rows(list(cohort), ("expression", "text"), {("expression", "text"): 1.0})
    held = Locations(rows, encoders, cached={})
    monkeypatch.setattr(dataset, "MEMORY_LIMIT", 0)
    fresh = Locations(rows, encoders, cached={})
    index = np.random.default_rng(0).permutation(len(rows))[:20]
    index[[3, 11]] = index[[7, 0]]  # a batch may hold a row twice
    a, b = held[index], fresh[index]
    assert torch.equal(a["expression"]["values"], b["expression"]["values"])
    width = b["text"]["ids"].shape[1]
    assert torch.equal(a["text"]["ids"][:, :width], b["text"]["ids"])
    assert not a["text"]["mask"][:, width:].any()
    assert torch.equal(a["text"]["copies"], b["text"]["copies"])


def test_windows_that_come_in_another_order_go_to_the_rows_that_asked(
    cohort: Cohort, encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_rows([cohort["S0"], cohort["S1"]], ("image", "expression"), {("image", "expression"): 1.0})

    def backwards(section: Section, card: Any, wanted: Any, *, size: int) -> Any:
        assert size >= len(wanted) == len(np.unique(wanted))
        counts, *rest = section.expression()
        yield wanted[::-1], Expression(counts[wanted[::-1]], *rest)

    index = np.array([50, 3, 9, 3, 50, 40])
    expected = dataset._Fresh(rows, encoders["expression"])(index)["values"]
    monkeypatch.setattr(dataset, "raw_chunks", backwards)
    assert torch.equal(dataset._Fresh(rows, encoders["expression"])(index)["values"], expected)


def test_captions_cost_what_they_are_long_and_their_keys_are_alphabetical(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [f"word {i % 3}" for i in range(36)]
    captions[4] = "x" * 100_000
    monkeypatch.setattr(Section, "captions", captions)
    rows = training_rows([cohort["S0"]], ("image", "text"), {("image", "text"): 1.0})
    assert rows.captions.nbytes < 1000
    expected = np.unique(np.array(captions), return_inverse=True)[1]
    assert dataset._keys(rows.captions).tolist() == expected.tolist()


def test_an_epoch_over_locked_towers_reads_no_pixel(
    cohort: Cohort, encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_rows([cohort["S0"], cohort["S1"]], ("image", "expression"), {("image", "expression"): 1.0})
    prints = {m: encoders[m].fingerprint() for m in ("image", "expression")}
    for section in rows.sections:
        for m in prints:
            encode_section(section, encoders[m])

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("read a pixel")

    monkeypatch.setattr(Section, "image", refuse)
    monkeypatch.setattr(Section, "expression", refuse)
    monkeypatch.setattr(type(encoders["image"]), "encode", refuse)
    data = Locations(rows, encoders, cached=prints)
    for start in range(0, len(rows), 16):
        assert len(data[np.arange(start, min(start + 16, len(rows)))]["image"]["features"])


def test_embeddings_are_made_once_and_absent_rows_are_not_a_number(
    cohort: Cohort, encoders: dict[str, Encoder]
) -> None:
    section = cohort["S1"]
    fingerprint = encode_section(section, encoders["text"])
    stored = section.embeddings.read(fingerprint)
    np.testing.assert_array_equal(stored.present, present(section, "text"))
    assert np.isnan(stored.values[~stored.present]).all()
    values, there = encode_rows(section, encoders["text"], batch_size=3)
    np.testing.assert_array_equal(there, stored.present)
    np.testing.assert_allclose(values[there], stored.values[there], atol=1e-5)
    folder = section.embeddings.folder / fingerprint
    before = folder.stat().st_mtime_ns
    assert encode_section(section, encoders["text"]) == fingerprint
    assert folder.stat().st_mtime_ns == before


def test_cached_windows_equal_windows_of_the_slide(cohort: Cohort) -> None:
    section, card = cohort["S0"], registry.card("tile-vit")
    fingerprint = cache_windows(section, card)
    values = section.windows.read(fingerprint).values
    reader = section.image()
    px, mpp = card.input_px or 0, card.mpp or 0.0
    for row in (0, 17, 35):
        np.testing.assert_array_equal(values[row], reader.read(section.centres_um[row], px * mpp, px))


def test_shorter_token_axes_are_padded_with_zeros() -> None:
    a, b = {"ids": torch.ones(2, 3), "x": torch.ones(2)}, {"ids": torch.ones(1, 5), "x": torch.zeros(1)}
    out = concat_inputs([a, b])
    assert out["ids"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert out["x"].tolist() == [1, 1, 0]


def test_features_of_other_rows_are_refused(cohort: Cohort, encoders: dict[str, Encoder], tmp_path: Path) -> None:
    rows = training_rows([cohort["S0"]], ("image", "expression"), {("image", "expression"): 1.0})
    fingerprint = "0" * 16
    store = cohort["S0"].embeddings
    if not store.has(fingerprint):
        store.write(
            fingerprint, np.zeros((36, 4), dtype=np.float32), present=np.arange(36) > 3, card={"name": "partial"}
        )
    with pytest.raises(ContractError, match="lack 4 locations"):
        Locations(rows, encoders, cached={"image": fingerprint})


def test_a_modality_taken_for_absent_is_absent_in_those_sections_alone(cohort: Cohort) -> None:
    sections = [cohort[s] for s in cohort.ids]
    plain = training_rows(sections, ALL, PAIRS)
    without = training_rows(sections, ALL, PAIRS, without={"text": ("S[01]",)})
    text = {s.id: without.present["text"][without.section == i].sum() for i, s in enumerate(sections)}
    assert text["S0"] == text["S1"] == 0 < text["S2"]
    assert text["S2"] == plain.present["text"][plain.section == 2].sum()
    with pytest.raises(RecipeError, match="no section is 'D"):
        check_without({"text": ("D*",)}, sections, ALL)


def test_shuffled_inputs_stay_among_rows_that_have_them_and_move_nothing_else(
    cohort: Cohort, encoders: dict[str, Encoder]
) -> None:
    rows = training_rows([cohort[s] for s in cohort.ids], ALL, PAIRS)
    shuffled = rows.shuffled(["text"], seed=3)
    at = np.arange(0, len(rows), 2)
    before, after = Locations(rows, encoders, cached={})[at], Locations(shuffled, encoders, cached={})[at]
    torch.testing.assert_close(before["image"], after["image"])
    torch.testing.assert_close(before["text"]["rows"], after["text"]["rows"])
    shown = shuffled.dealt["text"]
    assert sorted(shown.tolist()) == list(range(len(rows)))
    assert shuffled.present["text"][shown[shuffled.present["text"]]].all()
    words = after["text"]["ids"][after["text"]["copies"]]
    expected = encoders["text"].prepare(rows.captions[shown[at]][rows.present["text"][at]].tolist())["ids"]
    torch.testing.assert_close(words[:, : expected.shape[1]], expected)
    keys = after["duplicates"]["text"][after["text"]["rows"]]
    assert len(torch.unique(keys)) == len(torch.unique(after["text"]["copies"]))
