"""`hescape-mutation`: attention finds what few tiles show, in unseen patients, and nothing where there is nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch

import small
from bench_fakes import FakeModel, FakeSection
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.features import Depth
from triglyph.bench.hescape.clinical import attach
from triglyph.bench.hescape.mutation import HescapeMutation
from triglyph.bench.slides.attention_mil import GatedAttention, MilConfig, fit, log_odds, padded
from triglyph.bench.slides.bags import bag_baselines
from triglyph.errors import ContractError, SourceError, SplitError
from triglyph.tissue.split import Fold, Split

DIM = 12
QUICK = {"n_seeds": 1, "attention_dim": 16, "n_boot": 100}


@dataclass
class Tables:
    table: pd.DataFrame | None
    manifest: pd.DataFrame

    @property
    def clinical(self):
        if self.table is None:
            raise SourceError("the cohort has no clinical table")
        return self.table


class FewTiles(FakeModel):
    """Noise, and in patients with the mutation a tenth of the tiles that lie elsewhere; others have tiles opposite."""

    def __init__(self, mutated, *, share=0.1, far=5.0, **options):
        super().__init__(**options)
        self.mutated, self.share, self.far = mutated, share, far

    def embed(self, section, modality):
        rng = np.random.default_rng([9, zlib.crc32(section.id.encode())])
        x = rng.normal(size=(len(section.centres_um), DIM))
        odd = rng.permutation(len(x))[: round(self.share * len(x))]
        # As many odd tiles in everybody; those of the mutated lie where nobody else's do.
        x[odd, 0 if self.mutated[section.patient] else 1] += self.far
        return x, np.ones(len(x), bool)

    pooled = embed


def cohort(train=16, test=12, *, sections_each=1, seed=0, side=7):
    """A trial whose patients carry the mutation in turn."""
    sides, labels = [], {}
    for n, prefix in ((train, "train"), (test, "test")):
        people = [f"{prefix}-{i:02d}" for i in range(n)]
        labels.update({p: int(i % 2) for i, p in enumerate(people)})
        sides.append(tuple(FakeSection(f"{p}.{s}", p, side=side) for p in people for s in range(sections_each)))
    patients = {s.id: s.patient for of in sides for s in of}
    return Trial(train=sides[0], test=sides[1], patients=patients, split="made"), labels


def known(made, labels):
    table = pd.DataFrame({"mutation": labels})
    return attach(replace(made), Tables(table, pd.DataFrame({"patient": made.patients})))


def run(made, labels, model=None, name="fake", **options):
    subject = Subject(name, model or FewTiles(labels))
    return HescapeMutation(**{**QUICK, **options}).run(subject, known(made, labels))


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, [(r.model, r.metric, r.aggregation, r.group) for r in found]
    return found[0]


def bags(n=6, *, seed=0):
    rng = np.random.default_rng(seed)
    return {f"p{i}": rng.normal(size=(5 + 3 * i, DIM)) for i in range(n)}


# ---- the model


def untrained(seed=0):
    torch.manual_seed(seed)
    model = GatedAttention(DIM, attention_dim=8, dropout=0.5).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


@torch.no_grad()
def test_attention_is_the_formula_and_sums_to_one_over_the_tiles_of_a_bag():
    model, of = untrained(), list(bags().values())
    logits, attention = model(*padded(of))
    assert attention.sum(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
    v, u, w, c = (getattr(model, name) for name in ("value", "gate", "attention", "classifier"))
    for i, bag in enumerate(of):
        h = torch.tensor(bag, dtype=torch.float32)
        gate = torch.sigmoid(h @ u.weight.T + u.bias)
        score = ((torch.tanh(h @ v.weight.T + v.bias) * gate) @ w.weight.T)[:, 0]
        a = score.exp() / score.exp().sum()
        assert attention[i, : len(bag)].tolist() == pytest.approx(a.tolist(), abs=1e-5)
        assert not attention[i, len(bag) :].any()
        assert logits[i].item() == pytest.approx(((a @ h) @ c.weight[0] + c.bias[0]).item(), abs=1e-4)


def test_padding_and_the_order_of_tiles_change_nothing():
    model, of = untrained(), list(bags().values())
    tiles, mask = padded(of)
    together = model(tiles, mask)[0]
    garbage = tiles.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(model(garbage, mask)[0], together)
    wider = torch.cat([tiles, torch.full((6, 40, DIM), 1e6)], dim=1)
    more = torch.cat([mask, torch.zeros(6, 40, dtype=torch.bool)], dim=1)
    assert model(wider, more)[0].tolist() == pytest.approx(together.tolist(), abs=1e-5)
    for i, bag in enumerate(of):
        order = np.random.default_rng(i).permutation(len(bag))
        assert float(model(*padded([bag[order]]))[0][0]) == pytest.approx(float(together[i]), abs=1e-5)
    with pytest.raises(ContractError, match="a bag has no tile"):
        padded([of[0], of[0][:0]])


def test_padding_reaches_no_gradient():
    of = list(bags().values())
    tiles, mask = padded(of)
    found = []
    for fill in (0.0, float("nan")):
        model = untrained()
        model(tiles.masked_fill(~mask[..., None], fill), mask)[0].sum().backward()
        found.append(torch.cat([p.grad.ravel() for p in model.parameters()]))
    assert torch.isfinite(found[1]).all()
    assert torch.equal(*found)


def test_a_fit_is_its_seed_alone_and_leaves_the_generator_of_torch_as_it_was():
    of, labels, how = bags(), {f"p{i}": i % 2 == 0 for i in range(6)}, MilConfig(steps=5, max_tiles=6)
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    first = log_odds(fit(of, labels, how=how, seed=1), of)
    assert torch.equal(torch.rand(3), wanted)
    again = dict(reversed(of.items()))
    assert log_odds(fit(again, labels, how=how, seed=1), of) == first
    assert log_odds(fit(of, labels, how=how, seed=2), of) != first
    all_tiles = MilConfig(steps=5)  # nothing is drawn, so weights and dropout alone differ
    assert log_odds(fit(of, labels, how=all_tiles, seed=2), of) != log_odds(fit(of, labels, how=all_tiles, seed=1), of)
    with pytest.raises(ContractError, match="6 of 6 training patients are positive"):
        fit(of, dict.fromkeys(of, True), how=how, seed=0)


def test_features_that_say_nothing_give_the_prevalence_of_training():
    of = {f"p{i}": np.zeros((4, DIM)) for i in range(8)}
    model = fit(of, {p: p in ("p1", "p5") for p in of}, how=MilConfig(), seed=0)
    odds = log_odds(model, of)
    assert [1 / (1 + np.exp(-v)) for v in odds.values()] == pytest.approx([0.25] * 8, abs=0.01)


# ---- the protocol


def test_the_protocols_are_imported_without_torch():
    names = (
        "hescape.mutation",
        "slides.classification",
        "stamp.tissue",
        "hescape.retrieval",
        "hescape.expression",
        "batch_effect",
    )
    modules = ", ".join(f"triglyph.bench.{name}" for name in names)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_labels_of_a_cohort_are_read_from_its_clinical_table(tmp_path):
    made = small.cohort(tmp_path, patients=6, side=3, images=False)
    fold = Fold(train=("S0", "S1", "S2"), test=("S3", "S4", "S5"))
    trial = Trial.of(made, Split(name="halves", level="patient", folds=(fold,)))
    protocol = HescapeMutation(modality="expression", steps=2, **QUICK)
    subject = Subject("library size", Depth(modality="expression"))
    with pytest.raises(ContractError, match="has a column 'mutation'"):
        protocol.run(subject, attach(trial, made))
    (made.path / "clinical.csv").write_text("patient,mutation\nP0,1\nP1,0\nP2,1\nP3,0\nP4,\nP5,1\n")
    rows = protocol.run(subject, trial)
    assert one(rows, model="library size", metric="auroc").n == 2
    assert one(rows, model="library size", metric="brier", group="P3").direction == "expression->mutation"


def test_attention_finds_the_few_tiles_of_unseen_patients():
    made, labels = cohort()
    rows = run(made, labels, FewTiles(labels, share=0.06, far=4.0))
    row = one(rows, model="fake", metric="auroc")
    assert row.value > 0.9
    assert (row.aggregation, row.group, row.level, row.n, row.chance) == ("pooled", "all", "patient", 12, 0.5)
    assert (row.ci_unit, row.n_units) == ("patient", 12)
    assert row.ci_low <= row.value <= row.ci_high
    brier = one(rows, model="fake", metric="brier", group="all")
    assert brier.value < 0.2 < brier.chance == pytest.approx(0.25)


def test_labels_at_random_are_at_chance():
    made, labels = cohort()
    model, found = FewTiles(labels), []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        people = sorted(p for p in labels if p.startswith("train"))
        shuffled = dict(zip(people, rng.permutation([labels[p] for p in people]).tolist(), strict=True))
        rows = run(made, {**labels, **shuffled}, model, steps=40)
        found.append(one(rows, model="fake", metric="auroc").value)
    assert np.mean(found) == pytest.approx(0.5, abs=0.25)
    assert min(found) < 0.5 < max(found)


def test_nothing_in_the_tiles_is_at_chance():
    made, labels = cohort(test=24)
    rows = run(made, labels, FewTiles(labels, far=0.0))
    assert one(rows, model="fake", metric="auroc").value == pytest.approx(0.5, abs=0.25)
    assert one(rows, model="fake", metric="brier", group="all").value > 0.2


def test_every_patient_has_their_value_and_they_are_those_of_the_metrics():
    made, labels = cohort(test=7)
    rows = run(made, labels)
    people = sorted({s.patient for s in made.test})
    for name in ("fake", "fake: mean-pooled"):
        p = np.array([one(rows, model=name, metric="probability", group=who).value for who in people])
        y = np.array([labels[who] for who in people])
        pairs = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
        assert one(rows, model=name, metric="auroc").value == pytest.approx(np.mean(pairs))
        for who, value in zip(people, (p - y) ** 2, strict=True):
            assert one(rows, model=name, metric="brier", group=who).value == pytest.approx(value)
        whole = one(rows, model=name, metric="brier", group="all")
        assert whole.value == pytest.approx(((p - y) ** 2).mean())
    assert {r.role for r in rows if r.model == "fake"} == {"method"}
    assert {r.role for r in rows if r.model == "fake: mean-pooled"} == {"baseline"}


def test_mean_pooling_is_logistic_regression_on_the_means_of_a_patients_tiles():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    made, labels = cohort(sections_each=2, side=5)
    model = FewTiles(labels)
    rows = run(made, labels, model, steps=1)

    def means(sections, scale):
        people = sorted({s.patient for s in sections})
        tiles = {p: np.concatenate([model.embed(s, "image")[0] for s in sections if s.patient == p]) for p in people}
        return people, np.stack([scale.transform(tiles[p]).mean(axis=0) for p in people])

    scale = StandardScaler().fit(np.concatenate([model.embed(s, "image")[0] for s in made.train]))
    (people, x), (asked, new) = means(made.train, scale), means(made.test, scale)
    again = StandardScaler().fit(x)
    by_hand = LogisticRegression(C=0.1).fit(again.transform(x), [labels[p] for p in people])
    wanted = by_hand.predict_proba(again.transform(new))[:, 1]
    of = {"model": "fake: mean-pooled", "metric": "probability"}
    assert [one(rows, **of, group=p).value for p in asked] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_patient_is_one_bag_whatever_the_order_of_their_sections():
    made, labels = cohort(train=6, test=4, sections_each=2, side=4)
    rows = run(made, labels)
    assert one(rows, model="fake", metric="auroc").n == 4
    turned = replace(made, train=made.train[::-1], test=made.test[::-1])
    assert run(turned, labels) == rows
    assert run(made, labels) == rows
    assert run(made, labels, seed=1) != rows


def test_seeds_are_averaged_inside():
    made, labels = cohort(train=6, test=4, side=4)
    single = [run(made, labels, seed=s) for s in (0, 1)]
    both = run(made, labels, n_seeds=2)
    of = {"model": "fake", "metric": "probability", "group": "test-01"}

    def odds(rows):
        p = one(rows, **of).value
        return np.log(p / (1 - p))

    assert odds(both) == pytest.approx(np.mean([odds(r) for r in single]), abs=1e-6)
    assert len(both) == len(single[0])


def test_the_majority_is_the_prevalence_of_training_and_knows_nothing():
    made, labels = cohort(train=8, test=8, side=4)
    labels = {**labels, "train-00": 1, "train-02": 1}
    stain = FewTiles(labels)
    protocol = HescapeMutation(**QUICK)
    majority, texture = bag_baselines(protocol, stain)
    rows = protocol.run(majority, known(made, labels))
    assert {r.model for r in rows} == {"majority"}
    assert one(rows, metric="auroc").value == 0.5
    assert one(rows, metric="probability", group="test-00").value == pytest.approx(0.75, abs=0.01)
    whole = one(rows, metric="brier", group="all")
    assert whole.value == pytest.approx(whole.chance, abs=0.01)
    assert (texture.name, texture.role, texture.source) == ("stain-texture", "baseline", stain)
    assert [s.name for s in bag_baselines(protocol, None)] == ["majority"]


def test_a_fold_of_one_patient_or_one_class_has_no_auroc_and_says_so(caplog):
    made, labels = cohort(train=6, test=1, side=4)
    with caplog.at_level(logging.WARNING):
        rows = run(made, labels)
    assert "the 1 test patients of fake are of one class, and have no AUROC" in caplog.text
    assert one(rows, model="fake", metric="auroc").value is None
    assert one(rows, model="fake", metric="brier", group="all").value is not None
    made, labels = cohort(train=6, test=7, side=4)
    labels = {p: v if p.startswith("train") else 0 for p, v in labels.items()}
    rows = run(made, labels)
    row = one(rows, model="fake", metric="auroc")
    assert (row.value, row.n, row.ci_low, row.ci_unit) == (None, 7, None, "")


def test_an_auroc_that_hangs_on_one_positive_patient_has_no_interval():
    made, labels = cohort(train=6, test=8, side=4)
    single = {p: v if p.startswith("train") else int(p == "test-03") for p, v in labels.items()}
    row = one(run(made, single, steps=5), model="fake", metric="auroc")
    assert (row.n, row.ci_unit, row.ci_low) == (8, "", None)
    assert row.value is not None
    assert one(run(made, labels, steps=5), model="fake", metric="auroc").n_units == 8


def test_one_class_in_training_is_refused_in_words():
    made, labels = cohort(train=4, test=4, side=4)
    with pytest.raises(ContractError, match="of 4 training patients .* all are on one side"):
        run(made, {p: 0 if p.startswith("train") else v for p, v in labels.items()})
    with pytest.raises(ContractError, match="there is none"):
        run(made, {p: v for p, v in labels.items() if p.startswith("test")})
    with pytest.raises(ContractError, match="no test patient has"):
        run(made, {p: v for p, v in labels.items() if p.startswith("train")})


def test_patients_without_a_label_are_left_out_and_named(caplog):
    made, labels = cohort(train=6, test=6, side=4)
    some = {p: v for p, v in labels.items() if p not in ("train-03", "test-05")}
    with caplog.at_level(logging.WARNING):
        rows = run(made, some, FewTiles(labels))
    assert "left out: test-05, train-03" in caplog.text
    assert one(rows, model="fake", metric="auroc").n == 5
    assert not [r for r in rows if r.group == "test-05"]


def test_a_label_is_binary_or_its_positive_value_is_named():
    made, labels = cohort(train=6, test=6, side=4)
    kinds = {p: ("wild", "G12C", "G12D")[i % 3] for i, p in enumerate(labels)}
    with pytest.raises(ContractError, match="has the values G12C, G12D, wild"):
        run(made, kinds, FewTiles(labels))
    rows = run(made, kinds, FewTiles(labels), positive="G12C")
    assert one(rows, model="fake", metric="auroc").value is not None
    with pytest.raises(ContractError, match="none of them 'V600E'"):
        run(made, kinds, FewTiles(labels), positive="V600E")
    with pytest.raises(ContractError, match="no table of patients or sections has a column 'msi'"):
        run(made, labels, label_column="msi")


def test_a_patient_on_both_sides_is_refused_since_their_label_was_trained_on():
    made, labels = cohort(train=4, test=4, side=4)
    again = FakeSection("again", "train-00", side=4)
    both = replace(made, test=(*made.test, again), patients={**made.patients, "again": "train-00"})
    with pytest.raises(SplitError, match="whose label was trained on: train-00"):
        run(both, labels)
    seen = FewTiles(labels, trained_on=("elsewhere",))
    subject = Subject("fake", seen, training_patients=("test-01",))
    rows = HescapeMutation(**QUICK).run(subject, known(made, labels))
    assert one(rows, model="fake", metric="probability", group="test-01").level == "within-patient"
    assert one(rows, model="fake", metric="auroc", level="patient").n == 3
