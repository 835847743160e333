"""Simulated gene sets: true ones are true, corrupted ones wrong by the stated shares, shuffled ones a control."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from triglyph.genes.gmt import read_gmt
from triglyph.tissue.simulate.genesets import (
    VERSIONS,
    corrupted_gene_sets,
    gene_set_truth,
    gene_sets,
    shuffled_gene_sets,
    write_gene_sets,
)
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.states import STATES, Dial
from triglyph.tissue.simulate.molecules.expression import build_world
from triglyph.tissue.simulate.molecules.programs import MARKERS, NICHES, PROGRAMMES, gene_symbols
from triglyph.tissue.simulate.presets import preset

TINY = preset("tiny")
FILLED = TINY.model_copy(
    update={"molecules": TINY.molecules.model_copy(update={"filler_genes": 300, "filler_in_programme": 0.1})}
)


def test_true_sets_are_the_markers_programmes_and_niches():
    sets = gene_sets(TINY)
    assert len(sets) == len(CELL_TYPES) + len(PROGRAMMES) + len(NICHES)
    assert set(sets["CELLS_T_CELL"].genes) == set(MARKERS["T cell"].split())
    assert set(sets["PROGRAMME_HYPOXIA"].genes) == set(PROGRAMMES["hypoxia"][1].split())
    assert set(sets["NICHE_EXHAUSTION"].genes) == set(NICHES["exhaustion"][2].split())
    symbols = set(gene_symbols())
    assert all(set(found.genes) <= symbols and found.description for found in sets.values())


def test_filler_genes_of_a_programme_are_members_and_rise_with_the_state():
    sets, world = gene_sets(FILLED), build_world(FILLED)
    members = [gene for gene in sets["PROGRAMME_HYPOXIA"].genes if gene.startswith("SIM")]
    assert 3 < len(members) < 30
    loading = world.loading[CELL_TYPES.index("tumour"), STATES.index("hypoxia")]
    at = [world.symbols.index(gene) for gene in members]
    assert (loading[at] > 0).all()
    others = [i for i, s in enumerate(world.symbols) if s.startswith("SIM") and s not in members]
    assert loading[others].max() < loading[at].min()


def test_the_sets_are_the_same_whatever_the_effects():
    silent = FILLED.molecules.model_copy(update={"state": 0.0, "niche": 0.0})
    off = FILLED.model_copy(update={"dial": Dial(shared=0, expression_only=0), "molecules": silent})
    assert gene_sets(off) == gene_sets(FILLED)


@pytest.mark.parametrize("config", [TINY, FILLED], ids=["named genes", "with fillers"])
def test_corrupted_sets_are_wrong_by_the_stated_shares(config):
    true, found = gene_sets(config), corrupted_gene_sets(config)
    irrelevant = [name for name in found if name not in true]
    assert len(irrelevant) / len(found) == pytest.approx(0.2, abs=0.02)
    assert set(true) <= set(found)
    symbols = set(gene_symbols(config.molecules.filler_genes))
    missing = wrong = total = 0
    for name, given in true.items():
        members, now = set(given.genes), set(found[name].genes)
        assert len(now) == len(found[name].genes)
        assert now <= symbols
        missing, wrong, total = missing + len(members - now), wrong + len(now - members), total + len(members)
        damaged = len(members - now)
        assert damaged / len(members) == pytest.approx(0.3, abs=0.5 / len(members) + 1e-9)
        # A gene that is replaced is lacking too: half of what lacks has a wrong one in its place.
        assert abs(len(now - members) - damaged / 2) <= 0.5
    assert missing / total == pytest.approx(0.3, abs=0.02)
    assert wrong / total == pytest.approx(0.15, abs=0.02)


def test_irrelevant_sets_look_like_the_others():
    true, found = gene_sets(TINY), corrupted_gene_sets(TINY)
    sizes = {len(given.genes) for given in true.values()}
    for name, given in found.items():
        if name not in true:
            assert name.split("_")[0] in ("CELLS", "PROGRAMME", "NICHE")
            assert given.description
            assert len(given.genes) in sizes
            # About nothing: no true set holds most of it.
            assert max(len(set(given.genes) & set(t.genes)) for t in true.values()) < len(given.genes) / 2
    # Not all at the end.
    places = [i for i, name in enumerate(found) if name not in true]
    assert places[0] < len(true)


def test_shuffled_sets_keep_names_sizes_and_overlaps_and_no_more():
    true, found = gene_sets(TINY), shuffled_gene_sets(TINY)
    assert list(true) == list(found)
    names = list(true)

    def overlaps(sets):
        return np.array([[len(set(sets[a].genes) & set(sets[b].genes)) for b in names] for a in names])

    np.testing.assert_array_equal(overlaps(true), overlaps(found))
    kept = sum(len(set(true[n].genes) & set(found[n].genes)) for n in names)
    assert kept / sum(len(true[n].genes) for n in names) < 0.15


def test_the_files_read_back_and_the_truth_says_which_gene_is_which(tmp_path):
    folder = write_gene_sets(TINY, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["corrupted.gmt", "shuffled.gmt", "true.gmt", "truth.csv"]
    made = {"true": gene_sets(TINY), "corrupted": corrupted_gene_sets(TINY), "shuffled": shuffled_gene_sets(TINY)}
    truth = pd.read_csv(folder / "truth.csv", keep_default_na=False)
    assert set(truth["version"]) == set(VERSIONS)
    pd.testing.assert_frame_equal(truth, gene_set_truth(TINY), check_dtype=False)
    for version, sets in made.items():
        assert read_gmt(folder / f"{version}.gmt") == sets
        rows = truth[truth["version"] == version]
        for name, given in sets.items():
            mine = rows[rows["set"] == name]
            assert set(mine["gene"][mine["what"] != "missing"]) == set(given.genes)
            if name in made["true"]:
                members = set(made["true"][name].genes)
                assert set(mine["gene"][mine["what"].isin(["true", "missing"])]) == members
            else:
                assert set(mine["what"]) == {"irrelevant"}
    assert set(truth["what"][truth["version"] == "true"]) == {"true"}


def test_the_seed_decides_and_nothing_else(tmp_path):
    one = {p.name: p.read_bytes() for p in write_gene_sets(TINY, tmp_path / "one").iterdir()}
    two = {p.name: p.read_bytes() for p in write_gene_sets(TINY, tmp_path / "two").iterdir()}
    assert one == two
    assert corrupted_gene_sets(preset("tiny", seed=1)) != corrupted_gene_sets(TINY)
    assert shuffled_gene_sets(preset("tiny", seed=1)) != shuffled_gene_sets(TINY)
