"""The ceiling of retrieval with captions: what repeated content permits, Bayes' rule, and nothing above it."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bench_fakes import FakeModel, trial
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.ceilings.subjects import CONTENT
from triglyph.bench.ceilings.text import CaptionTruth, caption_truth, reader, tied_ranks
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.parts import Part
from triglyph.bench.retrieval import Retrieval
from triglyph.metrics.merit import lower_is_better
from triglyph.metrics.retrieval import chance_recall
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.people import Language
from triglyph.tissue.simulate.language import HELD_OUT, SEEN, held_out_captions, write_captions
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

DENSITIES = {"sparse": 500.0, "moderate": 3000.0, "dense": 9000.0}
CONTENTS = [(a, b, d) for a, b in permutations(DOMAINS, 2) for d in DENSITIES]
"""126 that no two share: a domain, another at its border, a cellularity."""
RETRIEVAL = Retrieval(n_boot=0)
KEPT = ("recall@1", "recall@5", "recall@10", "median-rank")


class Worded:
    """Locations of given content, each said in words drawn for it."""

    def __init__(self, contents=CONTENTS, *, times=1, seed=0, identity="s", **knobs):
        contents = [c for c in contents for _ in range(times)]
        n = len(contents)
        shares = np.zeros((n, len(DOMAINS)))
        for row, (first, second, _) in zip(shares, contents, strict=True):
            row[DOMAINS.index(first)] += 0.6
            row[DOMAINS.index(second)] += 0.4
        told = Language(**{"missing": 0.0, **knobs})
        density = np.array([DENSITIES[d] for _, _, d in contents])
        content = (told, shares, np.zeros((n, len(CELL_TYPES))), density)
        rng = np.random.default_rng(seed)
        made = write_captions(*content, rng, lots=rng.random(n), section_text="all of it")
        self.captions, self.id, self.patient = made.texts, identity, identity
        held_out = held_out_captions(*content, rng)
        obs = pd.DataFrame({"caption_held_out": held_out, "truth_caption": made.kinds})
        self.table = SimpleNamespace(obs=obs, layers={}, obsm={})
        self.centres_um = np.stack([np.arange(n) * 100.0, np.zeros(n)], axis=1)
        self.labels = np.full(n, "")


class Simulated:
    """A specimen of a preset as protocols see a section, without pixels."""

    def __init__(self, patient, **language):
        base = preset("tiny")
        made = Specimen(base.model_copy(update={"language": Language(**language)}), patient, 0)
        self.table, self.id, self.patient = made.table, f"P{patient}-S0", f"P{patient}"
        self.centres_um = self.table.obsm["spatial"]
        self.captions, self.labels = list(self.table.obs["caption"]), self.table.obs["label"].to_numpy()
        self.info = SimpleNamespace(source={**made.truth_columns, "truth_dispersion": 0.2})

    def expression(self):
        var = self.table.var
        return self.table.X, tuple(var.index), tuple(var["ensembl_id"]), var["measured"].to_numpy()


class Reads:
    """Knows the content of words, and that of tissue but for `noise`; both in the same ideas."""

    modalities, training_sections = ("image", "text"), ()

    def __init__(self, noise, seed=0):
        self.noise, self.seed = noise, seed
        self.axes = {}

    def vector(self, ideas):
        out = np.zeros(256)
        for i in enumerate(ideas):
            out[self.axes.setdefault(i, len(self.axes))] = 1.0
        return out / max(np.linalg.norm(out), 1.0)

    def embed(self, section, modality):
        words = section.captions if modality == "text" else section.table.obs["caption_held_out"]
        read = reader(SEEN if modality == "text" else HELD_OUT)
        present = np.array([bool(c) or modality == "image" for c in section.captions])
        # One vector per text: a caption that two locations carry is embedded once.
        known = {text: self.vector(read(text)) for text in words}
        out = np.stack([known[text] for text in words])
        spread = self.noise if modality == "image" else 1e-3
        rng = np.random.default_rng([self.seed, len(modality)])
        noise = {text: rng.normal(size=256) for text in words}
        own = rng.normal(size=out.shape) if modality == "image" else np.stack([noise[text] for text in words])
        return out + spread * own, present

    pooled = embed


def among(*sections):
    return Trial((), sections, {s.id: s.patient for s in sections}, "made")


def ceiling(*sections, judged=None, protocol=RETRIEVAL):
    rows = ceiling_rows(protocol, among(*sections), judged or Reads(0.0))
    return {(r.direction, r.metric): r.value for r in rows if r.group == "all" and r.aggregation == "per-section"}


def reached(section, judged):
    rows = RETRIEVAL.run(Subject("reads", judged), among(section))
    return {(r.direction, r.metric): r.value for r in rows if r.group == "all" and r.aggregation == "per-section"}


# ---- what captions say


@pytest.mark.parametrize("words", [SEEN, HELD_OUT])
def test_every_phrase_reads_as_its_idea_in_every_template(words):
    read = reader(words)
    for domain, phrases in words.domains.items():
        for phrase in phrases:
            for density, said in words.densities.items():
                for template in words.openings:
                    for group, names in words.groups.items():
                        cells = words.cells.format(list=f"{words.amounts['some'][0]} {names[-1]}")
                        border = words.borders[0].format(other=words.domains["adipose tissue"][0])
                        text = template.format(domain=phrase, border=border, density=said[-1], cells=cells)
                        assert read(text) == (domain, "adipose tissue", density, "some", group), text
    assert read("") == read("no words of it") == ()


def test_captions_of_a_specimen_read_as_the_same_in_both_vocabularies():
    section = Simulated(0, missing=0.0)
    own = caption_truth(section).own
    assert own == tuple(reader(SEEN)(text) for text in section.captions)
    assert len(set(own)) > 10


# ---- the chance that a location carries a caption

FAT, FAT_TOO, NECROSIS = "fat, with few cells", "adipose tissue, sparsely cellular", "necrotic debris, with few cells"
SPARSE_FAT, SPARSE_NECROSIS = ("adipose tissue", "sparse"), ("necrosis", "sparse")


def chance(own, kinds, captions, texts=()):
    truth = CaptionTruth(tuple(own), np.array(kinds), frozenset(texts))
    return truth.chance(captions, np.arange(len(own)))


def test_wordings_of_one_content_share_its_chance():
    found = chance([SPARSE_FAT, SPARSE_FAT, SPARSE_NECROSIS], ["own"] * 3, [FAT, FAT_TOO, NECROSIS])
    assert found.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]


def test_a_wrong_caption_comes_from_another_domain_or_from_anywhere_where_there_is_but_one():
    kinds = ["own", "own", "own", "wrong"]
    found = chance([SPARSE_FAT] * 3 + [SPARSE_NECROSIS], kinds, [FAT, FAT_TOO, NECROSIS])
    # Three in four say their own in one of two wordings; one in four what a location of the other domain says.
    assert found[0] == pytest.approx([0.75 / 2] * 3 + [0.25 / 2])
    assert found[2] == pytest.approx([0.25] * 3 + [0.75])
    moderate = ("adipose tissue", "moderate")
    found = chance([SPARSE_FAT] * 3 + [moderate], kinds, [FAT, "fat, moderately cellular"])
    assert found[0] == pytest.approx([0.75 + 0.25 * 2 / 3] * 3 + [0.25])
    assert found[1] == pytest.approx([0.25 / 3] * 3 + [0.75])


def test_the_caption_of_the_section_is_anybodys():
    kinds = ["own", "section", "section", "section"]
    found = chance([SPARSE_FAT] * 3 + [SPARSE_NECROSIS], kinds, ["all of it", FAT], ["all of it"])
    assert found.tolist() == [[0.75] * 4, [0.25, 0.25, 0.25, 0.0]]


# ---- ranks


def test_ranks_are_those_of_all_orders_of_the_tied():
    scores = np.array([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    right = np.array([[False, True, False, True, False, True]])
    found = tied_ranks(scores, right)
    ranks = found.orders(np.random.default_rng(0), n=20_000)[:, 0]
    first = Counter(1 + 1 + min(order.index(0), order.index(1)) for order in permutations(range(4)))
    for rank, times in first.items():
        assert (ranks == rank).mean() == pytest.approx(times / 24, abs=0.015)
    assert set(ranks) == set(first)
    for k in range(8):
        assert found.within(k)[0] == pytest.approx(sum(n for rank, n in first.items() if rank <= k) / 24)


def test_nothing_known_is_chance():
    right = np.arange(40)[:, None] % 10 == np.arange(40)[None, :] % 10
    found = tied_ranks(np.ones((40, 40)), right)
    for k in (1, 5, 40):
        assert found.within(k) == pytest.approx(np.full(40, chance_recall(40, k, n_right=4)))


# ---- rows


def test_it_is_perfect_where_captions_are_clean_and_no_two_locations_show_the_same():
    found = ceiling(Worded())
    assert {direction for direction, _ in found} == {"image->text", "text->image"}
    assert set(found.values()) == {1.0}


def test_it_is_what_locations_of_one_content_leave_to_chance():
    section = Worded(times=4)
    read = reader(SEEN)
    found, said = ceiling(section), [read(text) for text in section.captions]
    wordings = Counter(read(text) for text in set(section.captions))
    assert found["image->text", "recall@1"] == pytest.approx(np.mean([1 / wordings[c] for c in said]))
    of_text = Counter(section.captions)
    assert found["text->image", "recall@1"] == pytest.approx(np.mean([m / 4 for m in of_text.values()]))
    assert found["image->text", "recall@5"] == found["text->image", "recall@5"] == 1.0


def test_it_falls_with_wrong_and_section_level_captions_and_missing_ones_are_nobodys_query():
    clean, some, most = (ceiling(Worded(times=2, wrong=w)) for w in (0.0, 0.3, 0.9))
    for key in (("image->text", "recall@1"), ("text->image", "recall@1"), ("image->text", "recall@10")):
        assert clean[key] > some[key] > most[key], key
    shared = ceiling(Worded(times=2, section_level=0.5))
    assert shared["image->text", "recall@5"] == 1.0  # one guess of the section's caption, the others of the own
    assert shared["image->text", "recall@1"] < clean["image->text", "recall@1"]
    section = Worded(times=2, missing=0.5)
    rows = ceiling_rows(RETRIEVAL, among(section), Reads(0.0))
    left = sum(bool(text) for text in section.captions)
    assert {r.n for r in rows if r.direction == "image->text"} == {left}
    missing = {(r.direction, r.metric): r.value for r in rows if r.group == "all"}
    assert missing["image->text", "recall@1"] >= clean["image->text", "recall@1"]


@pytest.mark.parametrize("knobs", [{}, {"wrong": 0.3}, {"missing": 0.2, "section_level": 0.2, "wrong": 0.1}])
def test_nothing_that_reads_tissue_and_words_beats_it_and_who_reads_all_content_reaches_it(knobs):
    section = Simulated(1, **{"missing": 0.0, **knobs})
    bound = ceiling(section)
    for noise in (1e-3, 0.1, 1.0):
        drawn = [reached(section, Reads(noise, seed)) for seed in range(12)]
        for key in bound:
            values = np.array([d[key] for d in drawn])
            # A single draw of the noise may lie above by luck, their mean may not.
            luck = 3 * values.std(ddof=1) / np.sqrt(len(values)) + 1e-9
            if lower_is_better(key[1]):
                assert values.mean() >= bound[key] - luck, (noise, key)
            else:
                assert values.mean() <= bound[key] + luck, (noise, key)
            if noise == 1e-3 and not knobs:
                assert values.mean() == pytest.approx(bound[key], abs=luck + 0.01), key


def test_rows_are_ceilings_that_say_what_they_know_beside_those_of_expression():
    class All(Reads):
        modalities = ("image", "expression", "text")

    section = Simulated(0)
    rows = ceiling_rows(Retrieval(), among(section), All(0.0))
    assert {r.role for r in rows} == {"ceiling"}
    mine = [r for r in rows if r.model == CONTENT]
    assert {r.direction for r in mine} == {"image->text", "text->image", "expression->text", "text->expression"}
    assert {r.metric for r in mine} == set(KEPT)
    assert all("what captions of the test locations should say" in " ".join(r.transductive) for r in mine)
    whole = RETRIEVAL.run(Subject("mine", Reads(0.0)), among(section))
    beside = {(r.direction, r.metric, r.group): (r.n, r.n_gallery, r.chance) for r in whole}
    for row in mine:
        if row.direction in ("image->text", "text->image"):
            assert (row.n, row.n_gallery, row.chance) == beside[row.direction, row.metric, row.group]
    again = [r for r in ceiling_rows(Retrieval(), among(section), All(0.0)) if r.model == CONTENT]
    assert again == mine


def test_a_part_of_a_section_is_judged_over_its_own_locations():
    section = Simulated(0, wrong=0.2)
    rows = ceiling_rows(RETRIEVAL, among(Part(section, np.arange(10, 50))), Reads(0.0))
    there = sum(bool(text) for text in section.captions[10:50])
    assert {r.n for r in rows if r.direction == "image->text"} == {there}


def test_captions_that_are_not_as_simulated_have_no_ceiling(caplog):
    assert ceiling_rows(RETRIEVAL, trial(), FakeModel(modalities=("image", "text"))) == []
    section = Simulated(0)
    first = section.table.obs["truth_caption"].tolist().index("own")
    section.captions[first] = "a picture of my cat"
    assert ceiling(section) == {}
    assert "'a picture of my cat'" in caplog.text
