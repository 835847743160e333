from __future__ import annotations

import weakref
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import small
from triglyph.errors import ContractError, SourceError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.lazy_sections import LazySections
from triglyph.training.neighbourhood_batches import NeighbourhoodBatches


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return small.cohort(tmp_path, patients=6, images=False)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[ad.AnnData]]:
    """Every table that was read, dead or alive."""
    read, found = ad.read_zarr, list[weakref.ref[ad.AnnData]]()

    def counted(path: Path) -> ad.AnnData:
        table = read(path)
        found.append(weakref.ref(table))
        return table

    monkeypatch.setattr("triglyph.tissue.section.ad.read_zarr", counted)
    return found


def alive(tables: list[weakref.ref[ad.AnnData]]) -> int:
    return sum(table() is not None for table in tables)


def test_it_is_the_sequence_of_the_cohorts_sections(cohort: Cohort) -> None:
    sections = LazySections(cohort)
    assert len(sections) == len(cohort) == 6
    assert [s.id for s in sections] == list(sections.ids) == cohort.ids
    assert sections[-1].id == "S5"
    chosen = LazySections(cohort, ["S4", "S0", "S2"], keep=2)
    assert [s.id for s in chosen] == ["S4", "S0", "S2"]
    assert [s.id for s in chosen[1:]] == ["S0", "S2"]
    assert chosen[1:].keep == 2
    with pytest.raises(IndexError):
        chosen[3]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_no_more_tables_live_than_are_kept(cohort: Cohort, tables: list, keep: int) -> None:
    sections = LazySections(cohort, keep=keep)
    most = 0
    for _ in range(2):
        for section in sections:
            assert section.table.n_obs == 36
            most = max(most, alive(tables))
    # Without waiting for the collector of cycles: a table is gone when its section is let go.
    assert most == keep
    assert len(tables) == 12
    del section, sections
    assert alive(tables) == 0


def test_the_number_of_live_tables_does_not_depend_on_that_of_sections(cohort: Cohort, tables: list) -> None:
    most = []
    for count in (3, 6):
        sections = LazySections(cohort, cohort.ids[:count], keep=2)
        living = []
        for number in np.random.default_rng(0).integers(0, count, 12):
            sections[int(number)].expression()
            living.append(alive(tables))
        most.append(max(living))
        del sections
    assert most == [2, 2]


def test_the_least_recently_used_is_let_go(cohort: Cohort) -> None:
    sections = LazySections(cohort, keep=2)
    first, second = sections[0], sections[1]
    assert sections[0] is first
    sections[2]
    assert sections[0] is first
    assert sections[1] is not second


def test_a_section_is_opened_without_its_table_and_read_once_while_kept(cohort: Cohort, tables: list) -> None:
    sections = LazySections(cohort, keep=6)
    assert sum(s.n_locations for s in sections) == 216
    assert tables == []
    for _ in range(3):
        for section in sections:
            section.centres_um, section.expression()
    assert len(tables) == 6


def test_the_manifest_overrules_as_it_does_in_the_cohort(cohort: Cohort) -> None:
    path = cohort.path / "sections.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("section")
    table.loc["S1", ["patient", "block", "species", "organ"]] = ["P9", "B7", "mouse", "spleen"]
    table.to_csv(path)
    edited = Cohort.open(cohort.path)
    section = LazySections(edited)[1]
    assert (section.patient, section.info.block, section.info.species, section.info.organ) == (
        "P9",
        "B7",
        "mouse",
        "spleen",
    )
    assert section.info == edited["S1"].info
    assert section is not edited["S1"]


def test_the_cohort_keeps_none_of_them(cohort: Cohort, tables: list) -> None:
    for section in LazySections(cohort, keep=1):
        section.expression()
    del section
    assert alive(tables) == 0
    assert cohort["S0"].table is cohort["S0"].table


def test_what_is_not_there_is_refused_at_once(cohort: Cohort) -> None:
    with pytest.raises(SourceError, match="no section 'S7', 'S8'"):
        LazySections(cohort, ["S0", "S7", "S8"])
    with pytest.raises(ContractError, match="0 sections kept open"):
        LazySections(cohort, keep=0)


def test_neighbourhoods_stream_through_it_with_the_tables_of_two_windows(cohort: Cohort, tables: list) -> None:
    sections = LazySections(cohort, keep=4)
    offsets = np.cumsum([0, *(s.n_locations for s in sections)])
    batches = NeighbourhoodBatches(
        offsets, places=lambda s: sections[s].centres_um, batch_size=45, seed=0, sections_at_once=2
    )
    seen, most = [], 0
    for batch in batches:
        of = np.searchsorted(offsets, batch.rows, side="right") - 1
        for number in np.unique(of):
            rows = batch.rows[of == number]
            counts = sections[int(number)].expression()[0][rows - offsets[number]]
            assert counts.shape == (len(rows), 12)
            most = max(most, alive(tables))
        seen.append(batch.rows)
    assert sorted(np.concatenate(seen).tolist()) == list(range(216))
    assert most == 4
    assert len(tables) == 6, "each was read once"
