"""Expression with text: ARCHS4, pseudobulks of the Census, captions from files and from templates, HEST's filter."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
import types
from collections import Counter
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from triglyph.errors import ContractError, RecipeError, SourceError
from triglyph.genes.tokens import RankVocabulary
from triglyph.tissue.checks import check_draft
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.readers import archs4, census
from triglyph.tissue.readers.anndata import AnnDataReader
from triglyph.tissue.readers.base import Notes, ReadOptions
from triglyph.tissue.readers.captioning import Template, caption_draft, read_captions
from triglyph.tissue.readers.hest import HestReader
from triglyph.tissue.readers.pairs import read_pairs
from triglyph.tissue.readers.row_files import read_excluded
from triglyph.workflows.read import read
from vendor_layouts import hest_folder

GENES = [f"ENSG{i:011d}" for i in range(1, 31)]


def options(tmp_path: Path, **said: object) -> ReadOptions:
    return ReadOptions(scratch=tmp_path, **said)  # type: ignore[arg-type]


def text_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- ARCHS4

SERIES = ["GSE10", "GSE9", "GSE9,GSE11", "GSE11", "GSE10", "GSE10", "", "GSE12", "GSE12,GSE10", "GSE30"]


@pytest.fixture(scope="module")
def bulk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """An ARCHS4 file and its counts (samples, genes); sample 5 has few genes."""
    path = tmp_path_factory.mktemp("archs4") / "human_gene_v2.2.h5"
    counts = np.random.default_rng(0).poisson(4, (len(SERIES), len(GENES))).astype(np.uint32)
    counts[5, 3:] = 0
    with h5py.File(path, "w") as file:
        file.create_dataset("data/expression", data=counts.T, chunks=(7, 2), compression="gzip")
        file["meta/genes/symbol"] = [f"G{i // 2}" if i < 4 else f"G{i}" for i in range(len(GENES))]
        file["meta/genes/ensembl_gene"] = GENES
        samples = {
            "geo_accession": [f"GSM{i}" for i in range(len(SERIES))],
            "series_id": SERIES,
            "title": [f"liver {i}" for i in range(len(SERIES))],
            "source_name_ch1": ["liver", "", *["blood"] * 8],
            "singlecellprobability": np.linspace(0, 1, len(SERIES)),
        }
        for name, values in samples.items():
            file[f"meta/samples/{name}"] = values
    return path, counts


def test_a_donor_is_a_series_with_all_that_shares_a_sample(tmp_path: Path) -> None:
    accessions = [f"GSM{i}" for i in range(len(SERIES))]
    whole = {d.name: d.rows.tolist() for d in archs4.donors_of(accessions, SERIES)}
    assert whole == {"GSM6": [6], "GSE9": [1, 2, 3], "GSE10": [0, 4, 5, 7, 8], "GSE30": [9]}
    # Leaving out the sample that links two series does not tear them apart; leaving out a series takes its samples.
    less = {d.name: d.rows.tolist() for d in archs4.donors_of(accessions, SERIES, frozenset({"GSM2", "GSE30"}))}
    assert less == {"GSM6": [6], "GSE9": [1, 3], "GSE10": [0, 4, 5, 7, 8]}


@pytest.mark.parametrize("size", [None, 2, 4])
def test_archs4_gives_every_wanted_profile_once_and_no_donor_two_patients(
    bulk: tuple[Path, np.ndarray], size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, counts = bulk
    monkeypatch.setattr(archs4, "BLOCK_BYTES", 800)  # several blocks a section
    excluded = read_excluded(text_file(tmp_path / "test_set.txt", "\ufeffGSM4  # Human Disease\n\nGSE30\ngse9\n"))
    said = options(tmp_path, exclude=excluded, min_genes=10, samples_per_section=size)
    reader, seen, patient_of = archs4.Archs4Reader(), {}, {}
    for section in reader.discover(path, said):
        draft = check_draft(reader.read(section, said), where=path)
        assert not draft.placed
        assert draft.source["notes"][0] == "test_set.txt excluded 2 of 10 samples by 2 of 3 names"
        assert "series" in draft.source["patient_source"]
        for name, row in zip(draft.table.obs_names, draft.table.to_df().to_numpy(), strict=True):
            assert seen.setdefault(name, row) is row
        for name in draft.table.obs["series_id"]:
            for series in name.split(",") if name else []:
                assert patient_of.setdefault(series, draft.patient) == draft.patient
    assert set(seen) == {f"GSM{i}" for i in (0, 1, 2, 3, 6, 7, 8)}
    assert patient_of["GSE9"] == patient_of["GSE11"]
    assert patient_of["GSE10"] == patient_of["GSE12"]
    for name, row in seen.items():
        own = counts[int(name[3:])]
        np.testing.assert_array_equal(row, [own[0] + own[1], own[2] + own[3], *own[4:]])  # one column a symbol


def test_archs4_refuses_other_files_and_sections_of_nothing(bulk: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    reader, said = archs4.Archs4Reader(), options(tmp_path)
    (section, *_) = reader.discover(bulk[0], said)
    with pytest.raises(ContractError, match="none of its 1 profiles has 250 genes"):
        reader.read(section, said)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["data/expression"] = np.zeros((2, 2))
    with pytest.raises(SourceError, match="lacks meta/genes"):
        reader.discover(tmp_path / "old.h5", said)
    with pytest.raises(SourceError, match="names nothing"):
        read_excluded(text_file(tmp_path / "empty.txt", "# none\n"))
    listed = text_file(tmp_path / "list.txt", "gse9\nGSM4.1\n")  # as a whole word, or not at all
    with pytest.raises(RecipeError, match="none of the 2 names is in the sources: 'GSM4.1', 'gse9'"):
        read([bulk[0]], out=tmp_path / "cohort", platform="archs4", exclude=listed)


# ---- the Census


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ad.AnnData]:
    """Cells of two datasets with the columns of the Census; raw counts in `raw`, something else in X."""
    rng = np.random.default_rng(1)
    n = 120
    counts = sp.csr_matrix(rng.poisson(0.7, (n, len(GENES))).astype(np.float32))
    obs = pd.DataFrame(
        {
            "dataset_id": pd.Categorical(np.repeat(["d-a", "d-b", "d-x"], 40)),
            "assay": pd.Categorical(rng.choice(["10x 3' v3", "10x 5' v1", "Smart-seq2"], n, p=[0.6, 0.3, 0.1])),
            "cell_type": pd.Categorical(rng.choice(["T cell", "B cell"], n)),
            "cell_type_ontology_term_id": "CL:1",
            "sex": pd.Categorical(rng.choice(["female", "male", "unknown"], n)),
            "donor_id": [f"D{i % 7}" for i in range(n)],
            "observation_joinid": [f"j{i}" for i in range(n)],
            "is_primary_data": rng.random(n) < 0.9,
            "soma_joinid": rng.permutation(n),
            "n_genes": rng.integers(0, 9, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    obs.loc[obs.index[:5], "sex"] = np.nan
    var = pd.DataFrame({"feature_name": [f"G{i}" for i in range(len(GENES))]}, index=GENES)
    table = ad.AnnData(counts, obs=obs, var=var)
    table.raw = table
    table.X = counts.multiply(0.37).tocsr()
    path = tmp_path_factory.mktemp("census") / "cells.h5ad"
    table.write_h5ad(path)
    return path, table


def brute_pseudobulks(table: ad.AnnData, dataset: str, least: int) -> dict[tuple[str, ...], tuple[np.ndarray, int]]:
    found: dict[tuple[str, ...], tuple[np.ndarray, int]] = {}
    for (_, o), row in zip(table.obs.iterrows(), table.raw.X.toarray(), strict=True):
        if o.dataset_id != dataset or not o.is_primary_data or o.assay == "Smart-seq2" or (row > 0).sum() < least:
            continue
        key = (o.assay, o.cell_type, "" if pd.isna(o.sex) else o.sex)
        total, n = found.get(key, (np.zeros(len(GENES)), 0))
        found[key] = total + row, n + 1
    return found


@pytest.fixture
def remote(cells: tuple[Path, ad.AnnData], monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of `cellxgene_census` that we call, by the signatures of its documentation, over the same cells."""
    table = cells[1]

    class Soma:
        def __enter__(self) -> Soma:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def open_soma(*, census_version: str = "stable", uri: str | None = None) -> Soma:
        assert (census_version, uri) == ("2023-12-15", None)
        return Soma()

    def get_obs(census, organism, *, value_filter=None, column_names=None):
        found = table.obs.reset_index(drop=True)
        if value_filter is not None:
            column, _, value = value_filter.partition(" == ")
            found = found[found[column].astype(str) == value.strip("'")]
        return (found if column_names is None else found[column_names]).sort_values(
            "soma_joinid" if "soma_joinid" in found and column_names is None else found.columns[0]
        )

    def get_var(census, organism):
        return pd.DataFrame(
            {"soma_joinid": range(9, 39), "feature_id": GENES, "feature_name": table.raw.var["feature_name"]}
        )

    def get_anndata(census, organism, *, obs_coords, obs_column_names, var_column_names):
        assert (obs_column_names, var_column_names) == (["soma_joinid"], ["soma_joinid"])
        mine = table.obs["soma_joinid"].isin(obs_coords).to_numpy()
        obs = table.obs.loc[mine, ["soma_joinid"]]
        var = pd.DataFrame({"soma_joinid": range(9, 39)}, index=GENES)[::-1]
        return ad.AnnData(table.raw.X[mine][:, ::-1], obs=obs, var=var)

    module = types.ModuleType("cellxgene_census")
    module.__dict__.update(open_soma=open_soma, get_obs=get_obs, get_var=get_var, get_anndata=get_anndata)
    monkeypatch.setitem(sys.modules, "cellxgene_census", module)


@pytest.mark.parametrize("source", ["local", "remote"])
def test_pseudobulks_are_sums_over_cells_with_identical_metadata(
    source: str,
    cells: tuple[Path, ad.AnnData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    path, table = cells
    monkeypatch.setattr(census, "BLOCK", 7)
    if source == "remote":
        request.getfixturevalue("remote")
        path = text_file(tmp_path / "census.json", json.dumps({"census_version": "2023-12-15"}))
    excluded = read_excluded(text_file(tmp_path / "excluded.txt", "d-x\n"))
    said = options(tmp_path, exclude=excluded, min_genes=14)
    reader = census.CensusReader()
    sections = reader.discover(path, said)
    assert [s.section_id for s in sections] == ["d-a", "d-b"]
    vocabulary = RankVocabulary({g: i + 2 for i, g in enumerate(GENES)}, {g: 1.0 + i % 3 for i, g in enumerate(GENES)})
    for section in sections:
        draft = check_draft(reader.read(section, said), where=path)
        expected = brute_pseudobulks(table, section.section_id, 14)
        assert "excluded.txt excluded 1 of 3 datasets by 1 of 1 names" in draft.source["notes"]
        obs = draft.table.obs
        keys = list(zip(obs["assay"], obs["cell_type"], obs["sex"], strict=True))
        assert sorted(keys) == sorted(expected)
        assert draft.source["pseudobulks"]["columns"] == ["assay", "cell_type", "sex"]
        assert draft.patient == section.section_id
        for key, row, n in zip(keys, draft.table.X.toarray(), obs["n_cells"], strict=True):
            np.testing.assert_array_equal(row, expected[key][0])
            assert n == expected[key][1]
        # Tokens of the sum are those of the mean: a factor common to a row changes no order.
        tokens = vocabulary.encode(
            draft.table.X, draft.table.var_names, draft.table.var["ensembl_id"], np.ones(30, bool), max_tokens=30
        )
        for i, key in enumerate(keys):
            mean = expected[key][0] / expected[key][1]
            value = mean / mean.sum() * 1e4 / np.array([vocabulary.scales[g] for g in GENES])
            order = np.lexsort((np.arange(30), -np.round(value, 9)))[: int((mean > 0).sum())]
            assert tokens.ids[i, : tokens.lengths[i]].tolist() == (order + 2).tolist()


def test_groups_of_cells_take_memory_by_columns_and_keep_their_names() -> None:
    n, k = 20_000, 12
    codes = np.random.default_rng(0).integers(-1, 3, (n, k))
    codes[:, 2:] = codes[:, :1]  # few groups
    words = [f"{c} {'a long description ' * 3}" for c in "zya"]
    columns = [f"c{j:02d}" for j in range(k)]
    obs = pd.DataFrame({c: pd.Categorical.from_codes(codes[:, j], words) for j, c in enumerate(columns)})

    class One(census.Cells):
        """Every cell has one count of one gene."""

        def __init__(self) -> None:
            self.obs, self.symbols, self.ensembl_ids = obs, np.array(["G"], object), np.array([GENES[0]], object)

        def counts(self, rows: np.ndarray) -> sp.csr_matrix:
            return sp.csr_matrix(np.ones((len(rows), 1), int))

    tracemalloc.start()
    found = census.pseudobulks(One(), np.arange(n), columns, least=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 * n  # a joined key takes 3 kB
    keys = Counter("\x1f".join("" if c < 0 else words[c] for c in row) for row in codes)
    assert found.obs["n_cells"].tolist() == found.counts.toarray()[:, 0].tolist() == [keys[key] for key in sorted(keys)]
    assert found.obs.index.tolist() == [f"pb-{hashlib.sha256(key.encode()).hexdigest()[:12]}" for key in sorted(keys)]
    assert ["\x1f".join(row) for row in found.obs[columns].to_numpy()] == sorted(keys)


def test_a_dense_table_is_read_in_stretches_of_bounded_bytes(
    cells: tuple[Path, ad.AnnData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ad.AnnData(cells[1].raw.X.toarray(), obs=cells[1].obs, var=cells[1].raw.var)
    table.write_h5ad(tmp_path / "dense.h5ad")
    monkeypatch.setattr(census, "DENSE_BYTES", 5 * len(GENES) * 4)
    rows, read_rows = np.r_[0:60:3, 60:80, 119], []

    class Stretches:
        """Notes how many rows are read at once."""

        def __init__(self, matrix: h5py.Dataset) -> None:
            self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype

        def __getitem__(self, key: slice) -> np.ndarray:
            read_rows.append(len(found := self.matrix[key]))
            return found

    with census.opened(tmp_path / "dense.h5ad", options(tmp_path), Notes()) as dense:
        dense._matrix = Stretches(dense._matrix)
        np.testing.assert_array_equal(dense.counts(rows).toarray(), table.X[rows])
    assert max(read_rows) <= 5


def test_the_census_without_its_package_or_with_normalised_counts_is_refused_in_words(
    cells: tuple[Path, ad.AnnData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    reader, said = census.CensusReader(), options(tmp_path, min_genes=1)
    with pytest.raises(SourceError, match="not installed"):
        reader.discover(text_file(tmp_path / "q.json", "{}"), said)
    plain = cells[1].copy()
    plain.raw = None
    plain.write_h5ad(tmp_path / "plain.h5ad")
    (section, *_) = reader.discover(tmp_path / "plain.h5ad", said)
    with pytest.raises(ContractError, match="not whole"):
        reader.read(section, said)
    plain.X = plain.X.tocsc()
    plain.write_h5ad(tmp_path / "by_gene.h5ad")
    with pytest.raises(SourceError, match="stored by gene"):
        reader.discover(tmp_path / "by_gene.h5ad", said)


# ---- captions


def test_templates_drop_clauses_and_leave_rows_without_what_they_need() -> None:
    t = Template("{cell_type} from {tissue}[ of a {sex} donor][, {disease}]")
    full = {"cell_type": "T cell", "tissue": "liver", "sex": "female", "disease": "hepatitis"}
    assert t.fill(full) == "T cell from liver of a female donor, hepatitis"
    assert t.fill({**full, "sex": ""}) == "T cell from liver, hepatitis"
    assert t.fill({**full, "tissue": ""}) == ""
    for text in ("no field", "{a}[ of {b}", "{a} [[{b}]]", "{}", "{a"):
        with pytest.raises(RecipeError, match="not a template"):
            Template(text)


def test_values_become_words_without_losing_digits(tmp_path: Path) -> None:
    lines = ['{"n": 9007199254740993, "x": 0.5, "flag": true, "tags": ["é", 1], "who": "12"}', '{"n": null, "x": NaN}']
    rows = read_pairs(text_file(tmp_path / "t.jsonl", "\ufeff" + "\n".join(lines))).rows
    assert rows.iloc[0].tolist() == ["9007199254740993", "0.5", "true", '["é", 1]', "12"]
    assert rows.iloc[1].tolist() == [""] * 5
    numbers = {np.float64: [1234567.0, 0.123456789, 54.0, np.nan], np.float32: [1234567.0, 0.1, -3.0, np.inf]}
    words = [["1234567", "0.123456789", "54", ""], ["1234567", "0.1", "-3", "inf"]]
    for (kind, values), expected in zip(numbers.items(), words, strict=True):
        obs = pd.DataFrame({"number": np.array(values, kind)}, index=list("abcd"))
        obs["category"] = pd.Categorical(obs["number"])
        for column in obs:
            draft = unplaced(tmp_path, ad.AnnData(np.ones((4, 1)), obs=obs), caption_template=(f"value {{{column}}}",))
            assert draft.table.obs["caption"].tolist() == [f"value {word}" if word else "" for word in expected]


def unplaced(tmp_path: Path, table: ad.AnnData, **said: object) -> object:
    table.write_h5ad(tmp_path / "t.h5ad")
    given = options(tmp_path, spatial_unit="none", patient="P", **said)
    reader = AnnDataReader()
    (section,) = reader.discover(tmp_path / "t.h5ad", given)
    draft = reader.read(section, given)
    caption_draft(draft, given)
    return check_draft(draft, where=tmp_path)


def test_captions_come_from_the_file_then_the_table_then_a_seeded_draw_of_templates(tmp_path: Path) -> None:
    n = 60
    obs = pd.DataFrame(
        {"cell type": pd.Categorical(["T cell"] * 59 + ["unknown"]), "age": [54.0] * n, "caption": ""},
        index=[f"b{i}" for i in range(n)],
    )
    obs.iloc[:2, 2] = "its own"
    table = ad.AnnData(sp.csr_matrix(np.ones((n, 3), dtype=int)), obs=obs, var=pd.DataFrame(index=["A", "B", "C"]))
    lines = [
        {"barcode": "b0", "caption": "filed"},
        {"barcode": "b2", "section": "other", "caption": "no"},
        {"barcode": "b3", "section": "t", "caption": "here"},
    ]
    filed = read_captions(text_file(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines))))
    templates = ("a {cell_type}", "{cell_type}, {age} years")
    said = {"captions": filed, "caption_template": templates, "seed": 3}
    draft = unplaced(tmp_path, table, **said)
    captions = draft.table.obs["caption"].tolist()
    assert captions[:2] + captions[3:4] == ["filed", "its own", "here"]
    assert captions[-1] == ""
    drawn = captions[4:-1] + captions[2:3]
    assert set(drawn) == {"a T cell", "T cell, 54 years"}
    assert draft.source["captions"]["without"] == 1
    # The draw is a row's own: other rows and their order do not matter, the seed does.
    turned = unplaced(tmp_path, table[::-1].copy(), **said)
    assert turned.table.obs["caption"].tolist() == captions[::-1]
    assert unplaced(tmp_path, table, **{**said, "seed": 4}).table.obs["caption"].tolist() != captions
    with pytest.raises(RecipeError, match="no column 'organ'"):
        unplaced(tmp_path, table, caption_template=("{organ}",))
    with pytest.raises(ContractError, match="none for this section"):
        unplaced(tmp_path, table, captions=read_captions(text_file(tmp_path / "d.csv", "barcode,caption\nzz,x\n")))
    with pytest.raises(ContractError, match="two captions"):
        read_captions(text_file(tmp_path / "e.csv", "barcode,caption\nzz,x\nzz,y\n"))
    with pytest.raises(RecipeError, match="and yet --location-um"):
        unplaced(tmp_path, table, location_um=55.0)


def test_read_captions_a_cohort_and_a_second_run_finds_it_there(tmp_path: Path, cells: tuple[Path, ad.AnnData]) -> None:
    from triglyph.workflows.read import read

    table = ad.AnnData(cells[1].raw.X, obs=cells[1].obs, var=cells[1].raw.var)
    table.write_h5ad(tmp_path / "all.h5ad")
    filed = text_file(tmp_path / "c.csv", "barcode,caption\ncell3,filed\ncell50,filed\ncell90,filed\n")
    for status in ("read", "already there"):
        report = read(
            [tmp_path / "all.h5ad"], out=tmp_path / "cohort", platform="anndata", spatial_unit="none",
            section_column="dataset_id", patient_column="dataset_id", captions=filed, only=["d-a"],
            caption_template=["{cell_type}[ of a {sex} donor]"], seed=1,
        )  # fmt: skip
        assert [r.status for r in report.rows] == [status], report.rows
    section = Cohort.open(tmp_path / "cohort")["d-a"]
    assert not section.placed
    assert section.captions[3] == "filed"
    assert section.captions[0] == str(table.obs["cell_type"].iloc[0])


# ---- HEST


def test_the_hest_filter_keeps_human_visium_of_fine_pixels(tmp_path: Path) -> None:
    source = hest_folder(tmp_path / "hest", image=False)
    (name,) = [p.stem for p in (source / "st").glob("*.h5ad")]
    said = options(tmp_path, human_visium=True)
    row = {"id": name, "st_technology": "Visium", "species": "Homo sapiens", "pixel_size_um_estimated": 0.8}
    for change, kept in [
        ({}, 1),
        ({"species": "Mus musculus"}, 0),
        ({"st_technology": "Visium HD"}, 0),
        ({"pixel_size_um_estimated": 0.81}, 0),
    ]:
        pd.DataFrame([{**row, **change}]).to_csv(source / "HEST_v1_1_0.csv", index=False)
        if kept:
            assert len(HestReader().discover(source, said)) == 1
        else:
            with pytest.raises(SourceError, match="none of its 1 sections is human Visium"):
                HestReader().discover(source, said)
    pd.DataFrame([{**row, "id": "other"}]).to_csv(source / "HEST_v1_1_0.csv", index=False)
    with pytest.raises(SourceError, match="lacks"):
        HestReader().discover(source, said)


def test_rows_of_few_genes_and_of_empty_windows_are_left_out(tmp_path: Path) -> None:
    """White has no deviation in any channel, though its channels differ after normalisation."""
    source = hest_folder(tmp_path / "hest", mpp=0.5)
    size = 1200
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[:, : size // 2] = np.random.default_rng(0).integers(0, 255, (size, size // 2, 3))
    (source / "wsis" / "TENX1.tif").unlink()
    write_pyramid(pixels, source / "wsis" / "TENX1.tif", mpp=0.5, tile=64)
    table = ad.read_h5ad(source / "st" / "TENX1.h5ad")
    table.X[::3, 1:] = 0
    table.write_h5ad(source / "st" / "TENX1.h5ad")
    genes = (table.X.toarray() > 0).sum(axis=1)
    x = np.asarray(table.obsm["spatial"])[:, 0]
    said = options(tmp_path, min_genes=2, min_window_std=0.01)
    reader = HestReader()
    draft = reader.read(reader.discover(source, said)[0], said)
    expected = (genes >= 2) & (x - 112 < size / 2)
    assert 0 < expected.sum() < (genes >= 2).sum() < len(genes)
    assert draft.table.obs_names.tolist() == table.obs_names[expected].tolist()
    with pytest.raises(ContractError, match="none of its"):
        reader.read(reader.discover(source, said)[0], options(tmp_path, min_genes=10**6))
