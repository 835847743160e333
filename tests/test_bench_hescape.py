"""HESCAPE's retrieval in full galleries and in batches, each against brute force; both sides of its expression."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from bench_fakes import FakeModel, FakeSection, RandomModel, trial
from triglyph.bench.contracts import Subject
from triglyph.bench.features import Position
from triglyph.bench.hescape.expression import HescapeExpression
from triglyph.bench.hescape.retrieval import HescapeRetrieval
from triglyph.bench.hest.protocol import HestNoPca
from triglyph.errors import ContractError, SplitError

BATCHED = "recall@5:batches-of-64"


class Lengths(FakeModel):
    """Embeddings whose lengths say nothing, and differ."""

    def embed(self, section, modality):
        values, present = super().embed(section, modality)
        return values * (1.0 + 3.0 * np.random.default_rng(5).random(len(values)))[:, None], present

    pooled = embed


def pick(rows, **wanted):
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]


def one(rows, **wanted):
    found = pick(rows, **wanted)
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


def both(model, section, direction):
    image, there = model.embed(section, "image")
    expression, _ = model.embed(section, "expression")
    return [side[there] for side in ((image, expression) if direction.startswith("image") else (expression, image))]


def ranks_by_hand(queries, gallery):
    """One query, one candidate at a time."""
    out = []
    for i, q in enumerate(queries):
        scores = [q @ g for g in gallery]
        out.append(1 + sum(s > scores[i] for s in scores))
    return np.array(out)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("direction", ["image->expression", "expression->image"])
def test_full_galleries_of_a_section_and_of_a_patient_equal_brute_force(direction):
    made, model = trial(test=2, sections_each=2, side=9), Lengths(noise=1.5, absent=(3, 50))
    rows = pick(HescapeRetrieval(n_boot=50).run(Subject("fake", model), made), direction=direction)
    by_patient = {}
    for section in made.test:
        a, b = (unit(x) for x in both(model, section, direction))
        ranks = ranks_by_hand(a, b)
        for k in (1, 5, 10):
            row = one(rows, metric=f"recall@{k}", group=section.id)
            assert row.value == pytest.approx((ranks <= k).mean())
            assert (row.n, row.n_gallery) == (79, 79)
            assert row.chance == pytest.approx(k / 79)
        assert one(rows, metric="median-rank", group=section.id).value == np.median(ranks)
        by_patient.setdefault(section.patient, []).append((a, b))
    found = []
    for patient, sides in by_patient.items():
        ranks = ranks_by_hand(*(np.concatenate(x) for x in zip(*sides, strict=True)))
        of = {"aggregation": "patient-pooled", "group": patient}
        row = one(rows, metric="recall@10", **of)
        assert row.value == pytest.approx((ranks <= 10).mean())
        assert (row.n, row.n_gallery) == (158, 158)
        assert row.chance == pytest.approx(10 / 158)
        assert (row.ci_unit, row.n_units) == ("spatial-block", 2 * 4)  # blocks of two sections are not one
        assert one(rows, metric="median-rank", **of).value == np.median(ranks)
        found.append(row.value)
    whole = one(rows, metric="recall@10", aggregation="patient-pooled", group="all")
    assert whole.value == pytest.approx(np.mean(found))
    # A larger gallery is harder, which is why its size stands in the row.
    assert whole.value < one(rows, metric="recall@10", aggregation="per-patient", group="all").value


def in_batches_by_hand(a, b, k, *, keep_rest, size=64):
    shares = []
    for start in range(0, len(a), size):
        stop = min(start + size, len(a))
        if stop - start < size and start and not keep_rest:
            continue
        shares.append((ranks_by_hand(a[start:stop], b[start:stop]) <= k).mean())
    return np.mean(shares)


@pytest.mark.parametrize("direction", ["image->expression", "expression->image"])
def test_batches_of_64_neighbouring_rows_equal_brute_force_and_leave_out_the_rest(direction):
    made, model = trial(test=2), Lengths(noise=2.0, absent=(3, 50))
    rows = pick(HescapeRetrieval(n_boot=50).run(Subject("fake", model), made), direction=direction)
    for section in made.test:
        a, b = (unit(x) for x in both(model, section, direction))
        for k in (1, 5, 10):
            row = one(rows, metric=f"recall@{k}:batches-of-64", group=section.id)
            assert row.value == pytest.approx(in_batches_by_hand(a, b, k, keep_rest=False))
            assert row.chance == pytest.approx(k / 64)
            assert (row.n, row.n_gallery) == (192, 64)
            assert row.ci_low < row.value < row.ci_high
    assert {r.compat for r in rows} == {""}


def test_the_release_compares_lengths_too_and_counts_its_last_short_batch_in_full():
    made, model = trial(test=1), Lengths(noise=2.0)
    section = made.test[0]
    rows = HescapeRetrieval(compat="release", n_boot=50).run(Subject("fake", model), made)
    assert {r.compat for r in rows} == {"release"}
    row = one(rows, metric=BATCHED, group=section.id, direction="image->expression")
    a, b = both(model, section, "image->expression")
    assert row.value == pytest.approx(in_batches_by_hand(a, b, 5, keep_rest=True))
    assert row.value != pytest.approx(in_batches_by_hand(unit(a), unit(b), 5, keep_rest=True), abs=1e-3)
    # 196 rows: three batches of 64, and one of 4 that nobody can fail.
    assert row.chance == pytest.approx((3 * 5 / 64 + 1) / 4)
    assert row.n == 196
    plain = HescapeRetrieval(n_boot=50).run(Subject("fake", model), made)
    full = {"metric": "recall@5", "group": section.id, "direction": "image->expression"}
    assert one(rows, **full).value == one(plain, **full).value


def test_of_unit_vectors_dot_product_and_cosine_are_one():
    made, subject = trial(test=1, side=8), Subject("fake", FakeModel(noise=2.0))
    ours, theirs = (HescapeRetrieval(compat=c).run(subject, made) for c in ("", "release"))
    assert [r.value for r in ours] == pytest.approx([r.value for r in theirs])


def test_a_section_smaller_than_a_batch_is_one_batch_with_its_own_chance():
    made, model = trial(test=1, side=6), FakeModel(noise=2.0)
    row = one(
        HescapeRetrieval().run(Subject("fake", model), made),
        metric=BATCHED,
        group=made.test[0].id,
        direction="image->expression",
    )
    assert (row.n, row.n_gallery) == (36, 36)
    assert row.chance == pytest.approx(5 / 36)
    assert row.value == pytest.approx((ranks_by_hand(*both(model, made.test[0], "image->expression")) <= 5).mean())


def test_batches_flatter_the_same_embedding_the_smaller_the_more():
    made, model = trial(test=1), FakeModel(noise=2.0)
    rows = pick(HescapeRetrieval().run(Subject("fake", model), made), direction="image->expression", group="test0.0")
    assert one(rows, metric=BATCHED).value > one(rows, metric="recall@5").value + 0.1
    small = HescapeRetrieval(batch_size=16).run(Subject("fake", model), made)
    assert pick(small, metric="recall@5:batches-of-16", group="test0.0")[0].value > one(rows, metric=BATCHED).value


class ByClass(FakeModel):
    """The same locations, as if the table listed them class by class."""

    def embed(self, section, modality):
        values, present = super().embed(section, modality)
        order = np.argsort(section.labels.astype(str), kind="stable")
        return values[order], present[order]


def test_batches_hang_on_the_order_of_the_table_and_full_galleries_do_not():
    made = trial(test=1)
    of = {"direction": "image->expression", "group": "test0.0"}
    mixed, sorted_ = (
        pick(HescapeRetrieval().run(Subject("fake", m), made), **of) for m in (FakeModel(noise=0.9), ByClass(noise=0.9))
    )
    assert one(mixed, metric="recall@5").value == one(sorted_, metric="recall@5").value
    assert one(mixed, metric=BATCHED).value > one(sorted_, metric=BATCHED).value + 0.05


def test_an_embedding_that_knows_nothing_or_says_the_same_of_everything_is_at_chance():
    made = trial(test=6)
    for model in (RandomModel(0), Same()):
        rows = pick(HescapeRetrieval().run(Subject("none", model), made), direction="image->expression", group="all")
        for metric in ("recall@5", BATCHED):
            row = one(rows, metric=metric, aggregation="per-section")
            assert row.value <= row.chance + 0.03
            assert (row.ci_unit, row.n_units) == ("patient", 6)
        assert one(rows, metric="recall@5", aggregation="patient-pooled").ci_unit == "patient"


class Same(FakeModel):
    def embed(self, section, modality):
        return np.ones((len(section.centres_um), 4)), np.ones(len(section.centres_um), bool)


def test_what_lacks_a_modality_or_was_trained_on_is_refused():
    made = trial()
    with pytest.raises(ContractError, match="has no expression"):
        HescapeRetrieval().run(Subject("fake", FakeModel(modalities=("image", "text"))), made)
    with pytest.raises(SplitError, match="trained or chosen on it"):
        HescapeRetrieval().run(Subject("fake", FakeModel(trained_on=(made.test[0].id,))), made)


def test_a_section_without_pairs_is_left_out_and_named(caplog):
    made = trial(test=2, side=8)
    with caplog.at_level(logging.INFO):
        rows = HescapeRetrieval().run(Subject("fake", Blind(made.test[1].id)), made)
    assert "test1.0 has no location with both" in caplog.text
    assert {r.group for r in rows} == {"all", "test0.0", "test-patient0"}


class Blind(FakeModel):
    def __init__(self, section):
        super().__init__()
        self.section = section

    def embed(self, section, modality):
        values, present = super().embed(section, modality)
        return values, present & (section.id != self.section)


def test_levels_are_never_in_one_gallery():
    made = trial(test=1, side=8)
    again = FakeSection("again", made.train[0].patient, side=8)
    mixed = replace(made, test=(*made.test, again), patients={**made.patients, "again": again.patient})
    rows = HescapeRetrieval().run(Subject("fake", FakeModel()), mixed)
    pooled = pick(rows, aggregation="patient-pooled", metric="recall@5", direction="image->expression")
    assert sorted((r.level, r.group) for r in pooled) == [
        ("patient", "all"),
        ("patient", "test-patient0"),
        ("within-patient", "all"),
        ("within-patient", "train-patient0"),
    ]


# ---- expression


class Aligned(FakeModel):
    """An alignment that threw half of the hidden state away."""

    def pooled(self, section, modality):
        return FakeModel.embed(self, section, modality)

    def embed(self, section, modality):
        values, present = self.pooled(section, modality)
        return values[:, :8], present


def test_the_aligned_embedding_and_what_it_was_made_of_stand_in_one_table():
    made = trial(side=10)
    rows = HescapeExpression(n_genes=20).run(Subject("model", Aligned()), made)
    after, before = (pick(rows, model=name) for name in ("model", "model: before alignment"))
    assert len(after) == len(before) == len(rows) / 2
    assert {r.protocol for r in rows} == {HescapeExpression(n_genes=20).stamp}
    assert ({r.role for r in after}, {r.role for r in before}) == ({"method"}, {"baseline"})
    for found, features in ((after, "embedding"), (before, "pooled")):
        by_hest = HestNoPca(n_genes=20, features=features).run(Subject("model", Aligned()), made)
        assert [r.value for r in found] == [r.value for r in by_hest]
    of = {"metric": "pearson", "aggregation": "pooled", "group": "all"}
    assert one(before, **of).value > one(after, **of).value + 0.05


def test_features_without_an_alignment_have_one_row_each():
    rows = HescapeExpression(n_genes=20).run(Subject("position", Position(), role="baseline"), trial(side=10))
    assert {r.model for r in rows} == {"position"}


def test_fifty_genes_and_no_components_are_its_constants():
    card = HescapeExpression().card()
    assert card.constants["n_genes"] == 50
    assert card.fitted["principal components"] == "none"
    assert card.digest() != HestNoPca().card().digest()
