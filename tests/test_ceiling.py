"""Ceilings: known values in closed cases, above every baseline, and silent where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from bench_fakes import CLASSES, FakeModel, FakeSection, trial
from triglyph.apply.prompts import Prompts
from triglyph.bench import registry
from triglyph.bench.baselines import expression_baselines, retrieval_baselines
from triglyph.bench.ceilings.laws import expected_log1p_cp10k, match_log_posterior
from triglyph.bench.ceilings.rows import ceiling_rows
from triglyph.bench.ceilings.subjects import COUNTING, DOMAINS, EXPRESSION, NOTES
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.measures import noise_free_draws
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.features import Depth, Features, Position
from triglyph.bench.hescape.retrieval import HescapeRetrieval
from triglyph.bench.hest.protocol import HestBenchmark
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.standing import standing
from triglyph.bench.suite import evaluate
from triglyph.bench.table import markdown, tabulate
from triglyph.bench.truth import truth_of
from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import Resamples
from triglyph.metrics.correlation import mean_defined, pearson
from triglyph.metrics.counting_noise import log_noise, noise_free_depth_removed, noise_free_pearson, rank_noise
from triglyph.metrics.expression import without_depth
from triglyph.metrics.merit import lower_is_better
from triglyph.metrics.retrieval import diagonal_ranks
from triglyph.metrics.thinning import split_counts
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

JUDGED = FakeModel()
PROTOCOLS = tuple(p(n_boot=0) for p in (Expression, HestBenchmark, Retrieval, HescapeRetrieval, LinearProbe, ZeroShot))


class KnownSection(FakeSection):
    """Counts drawn anew around rates that are kept, and stripes of classes that are the domains."""

    def __init__(self, *args, depth=5.0, domains=True, expected=True, **options):
        super().__init__(*args, **options)
        loading = np.random.default_rng(8).normal(size=(self.state.shape[1], self.genes))
        shape = np.exp(0.5 * self.state @ loading / np.sqrt(len(loading)) + np.linspace(-2, 2, self.genes))
        self.rate = shape * depth
        self.counts = sp.csr_matrix(np.random.default_rng(self.seed).poisson(self.rate))
        full = np.array(FakeSection(self.id, self.patient, side=self.side).labels)
        shares = (full[:, None] == np.array(CLASSES)[None, :]).astype(float)
        self.kept = SimpleNamespace(
            obs={},
            layers={"truth_expected": self.rate.astype(np.float32)} if expected else {},
            obsm={"truth_domains": shares} if domains else {},
        )
        self.info = SimpleNamespace(source={"truth_domains": list(CLASSES)})

    @property
    def table(self):
        return self.kept


def known_trial(**options):
    made = [KnownSection(f"s{p}", f"p{p}", seed=p, **options) for p in range(4)]
    return Trial(tuple(made[:2]), tuple(made[2:]), {s.id: s.patient for s in made}, "made")


def value(rows, model, metric, *, aggregation="per-section", direction=None, group="all"):
    found = [
        r.value
        for r in rows
        if (r.model, r.metric, r.aggregation, r.group) == (model, metric, aggregation, group)
        and direction in (None, r.direction)
    ]
    assert len(found) == 1, found
    return found[0]


# ---- counting noise


def test_halves_add_up_to_the_counts_and_share_them_evenly():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(30.0, (200, 50)))
    a, b = split_counts(counts, np.random.default_rng(1))
    assert (a + b != counts).nnz == 0
    assert min(a.data.min(), b.data.min()) >= 0
    assert a.sum() / counts.sum() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("scale", [1.0, 25.0])
def test_the_noise_of_a_log_is_that_of_many_draws_at_every_rate(scale):
    rates = np.array([0.02, 0.3, 1.0, 4.0, 30.0, 45.0, 700.0])
    counts = np.random.default_rng(0).poisson(rates, (40_000, len(rates)))
    found = log_noise(counts, scale=np.full(len(counts), scale)).mean(axis=0)
    np.testing.assert_allclose(found, np.log1p(scale * counts).var(axis=0), rtol=0.06, atol=0.002)


def counts_and_draws(depth, *, n=500, genes=24, draws=80):
    """Counts around rates that go with depth, some of them bunched at two values; and more counts of the same rates."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(n, 8))
    shape = np.exp(0.25 * z @ rng.normal(size=(8, genes)) + rng.normal(size=genes))
    shape[:, ::3] *= np.where(rng.random((n, 1)) < 0.15, 9.0, 1.0)
    depths = depth * np.exp(0.6 * z[:, :1] + 0.6 * rng.normal(size=(n, 1)))
    rate = shape / shape.sum(axis=1, keepdims=True) * depths
    counts = rng.poisson(rate)
    seen = counts.sum(axis=1) > 0
    return counts[seen], [rng.poisson(rate[seen]) for _ in range(draws)]


@pytest.mark.parametrize("depth", [100.0, 1000.0])
def test_the_ceilings_are_what_knowing_the_rates_gives(depth):
    counts, draws = counts_and_draws(depth)
    totals = counts.sum(axis=1)
    scale = 1e4 / totals
    truth = np.log1p(scale[:, None] * counts)
    drawn = [np.log1p(scale[:, None] * d) for d in draws]
    ordered = np.sort(truth, axis=0)

    def ranked(x):
        of = zip(ordered.T, x.T, strict=True)
        return np.stack([s.searchsorted(v - 1e-9) + s.searchsorted(v + 1e-9, side="right") for s, v in of], axis=1)

    ranks, known = ranked(truth), np.mean([ranked(x) for x in drawn], axis=0)
    pairs = [
        (noise_free_pearson(truth, log_noise(counts, scale=scale)), pearson(np.mean(drawn, axis=0), truth)),
        (noise_free_pearson(ranks / 2, rank_noise(counts, scale=scale)), pearson(known, ranks)),
        (noise_free_depth_removed(counts, totals), pearson(without_depth(known, totals), ranks)),
    ]
    for found, reached in pairs:
        assert found.mean() == pytest.approx(reached.mean(), abs=0.02)


def test_many_small_sections_have_the_pooled_ceiling_of_their_locations():
    rng = np.random.default_rng(2)
    made = trial(1, 20, side=3, genes=50)
    logs, rates = [], []
    for s in (*made.train, *made.test):
        rate = 0.3 * np.exp(0.7 * rng.normal(size=(9, 50)) - 0.245)
        s.counts = sp.csr_matrix(rng.poisson(rate))
        logs.append(np.log1p(s.counts.toarray()))
        rates.append(np.log1p(rng.poisson(rate, (2000, 9, 50))).mean(axis=0))
    known = mean_defined(pearson(np.concatenate(rates[1:]), np.concatenate(logs[1:]))).value
    protocol = HestBenchmark(genes=tuple(f"G{i:02d}" for i in range(50)), genes_chosen_on="elsewhere", n_boot=20)
    rows = ceiling_rows(protocol, made, FakeModel())
    assert value(rows, COUNTING, "pearson", aggregation="pooled") == pytest.approx(known, abs=0.03)
    own = [noise_free_pearson(x, log_noise(s.counts)) for x, s in zip(logs[1:], made.test, strict=True)]
    assert value(rows, COUNTING, "pearson") == pytest.approx(np.mean([mean_defined(r).value for r in own]))


def test_counts_of_equal_rates_hold_next_to_nothing_to_be_predicted():
    counts = np.random.default_rng(3).poisson(40.0, (1600, 40))
    assert noise_free_pearson(np.log1p(counts), log_noise(counts)).mean() < 0.12


def test_the_interval_of_the_ceiling_holds_it_and_draws_of_all_blocks_once_are_it():
    made = known_trial(side=20)
    rows = ceiling_rows(Expression(n_boot=50), made, JUDGED)
    found = [r for r in rows if (r.model, r.metric, r.aggregation) == (COUNTING, "pearson", "per-section")]
    assert all(0 < r.value - r.ci_low < 0.2 and 0 < r.ci_high - r.value < 0.2 for r in found)
    counts = made.test[0].counts.toarray()
    every = Resamples(np.zeros(len(counts)), n_boot=1)
    logs, noise = np.log1p(counts), log_noise(counts)
    np.testing.assert_allclose(noise_free_draws(every, logs, noise)[0], noise_free_pearson(logs, noise))


def test_what_is_no_count_or_no_scale_is_refused_and_one_location_has_no_ceiling():
    with pytest.raises(ContractError, match="fractions"):
        log_noise(np.array([[0.5]]))
    with pytest.raises(ContractError, match="above 0"):
        rank_noise(np.ones((2, 1)), scale=[1.0, 0.0])
    with pytest.raises(ContractError, match="differ in shape"):
        noise_free_pearson(np.ones((3, 1)), np.ones((3, 2)))
    assert np.isnan(noise_free_pearson(np.ones((1, 2)), np.zeros((1, 2)))).all()
    assert np.isnan(noise_free_pearson(np.ones((5, 2)), np.zeros((5, 2)))).all()


# ---- true expression


@pytest.mark.parametrize("dispersion", [0.0, 0.3])
def test_the_expected_log_is_what_many_draws_average_to(dispersion):
    rng = np.random.default_rng(0)
    mean = np.array([[0.0, 0.02, 0.7, 6.0, 39.0, 41.0, 900.0]])
    total = 5000.0
    if dispersion:
        size = 1 / dispersion
        drawn = rng.negative_binomial(size, size / (size + mean), (200_000, mean.shape[1]))
    else:
        drawn = rng.poisson(mean, (200_000, mean.shape[1]))
    found = expected_log1p_cp10k(mean, np.array([total]), dispersion=dispersion)[0]
    expected = np.log1p(drawn / total * 1e4).mean(axis=0)
    # Small means are summed, exactly; large ones expanded: within 0.03 also where dispersion is strong.
    assert found[:5] == pytest.approx(expected[:5], abs=0.01)
    assert found[5:] == pytest.approx(expected[5:], abs=0.04)


def test_true_expression_reaches_the_ceiling_of_counting_noise():
    rows = ceiling_rows(Expression(n_boot=0), known_trial(side=40), JUDGED)
    assert value(rows, EXPRESSION, "pearson") == pytest.approx(value(rows, COUNTING, "pearson"), abs=0.05)
    assert value(rows, EXPRESSION, "genes-undefined") == 0


def test_ceilings_of_hest_are_what_known_rates_reach_over_all_locations_and_within_sections():
    made = known_trial(side=40, genes=30)
    made = replace(made, test=(made.test[0], KnownSection("deep", "p9", seed=9, side=40, genes=30, depth=40.0)))
    made.patients["deep"] = "p9"
    judged, kept = FakeModel(absent=range(7)), slice(7, None)
    rows = ceiling_rows(HestBenchmark(n_genes=30, n_boot=20), made, judged)
    # Known without any ceiling's code: correlation of the log of the rates themselves with the log of the counts.
    sides = [(np.log1p(s.rate)[kept], np.log1p(s.counts.toarray())[kept]) for s in made.test]
    within = np.mean([mean_defined(pearson(*side)).value for side in sides])
    over_all = mean_defined(pearson(*(np.concatenate(x) for x in zip(*sides, strict=True)))).value
    assert over_all > within + 0.05  # depth differs between the sections
    for model in (COUNTING, EXPRESSION):
        assert value(rows, model, "pearson", aggregation="pooled") == pytest.approx(over_all, abs=0.02)
        assert value(rows, model, "pearson") == pytest.approx(within, abs=0.02)
        whole = next(r for r in rows if (r.model, r.aggregation, r.metric) == (model, "pooled", "pearson"))
        assert whole.ci_low < whole.value < whole.ci_high
        assert (whole.n, whole.n_genes, whole.role) == (2 * 1593, 30, "ceiling")
        assert len([r for r in rows if r.model == model and r.aggregation == "per-gene"]) == 30
    release = ceiling_rows(HestBenchmark(n_genes=30, n_boot=0, compat="release"), made, judged)
    assert {r.compat for r in release} == {"release"}


def test_oracle_retrieval_is_perfect_at_huge_depth_and_falls_with_depth():
    found = [
        value(
            ceiling_rows(Retrieval(n_boot=0), known_trial(depth=d), JUDGED),
            EXPRESSION,
            "recall@1",
            direction="image->expression",
        )
        for d in (1000.0, 1.0, 0.02)
    ]
    assert found[0] == 1.0
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.2


def test_oracle_retrieval_of_hescape_is_bayes_rule_in_every_gallery():
    sections = [KnownSection(f"s{i}", "p", seed=i, side=9, depth=0.1) for i in range(2)]
    made = Trial((KnownSection("t", "t", side=9),), tuple(sections), {"s0": "p", "s1": "p", "t": "t"}, "made")
    kept = np.setdiff1d(np.arange(81), [3, 50])
    rows = ceiling_rows(HescapeRetrieval(n_boot=0), made, FakeModel(absent=(3, 50)))

    def reached(direction, gallery):
        """Recall@5 by hand."""
        found = []
        counts = np.concatenate([s.counts.toarray()[of] for s, of in gallery])
        rate = np.concatenate([s.rate.astype(np.float32)[of] for s, of in gallery])
        likely = np.exp([[(y * np.log(m) - m).sum() for m in rate] for y in counts])
        scores = likely / likely.sum(axis=1, keepdims=True)
        for i, of in enumerate(scores.T if direction.startswith("image") else scores):
            tied = np.isclose(of, of[i], rtol=1e-7)  # locations without a count are alike
            found.append((1 + (of > of[i])[~tied].sum() + (tied.sum() - 1) / 2) <= 5)
        return pytest.approx(np.mean(found))

    batch = "recall@5:batches-of-64"
    for direction in ("image->expression", "expression->image"):
        one = {"direction": direction}
        assert value(rows, EXPRESSION, "recall@5", group="s0", **one) == reached(direction, [(sections[0], kept)])
        assert value(rows, EXPRESSION, batch, group="s1", **one) == reached(direction, [(sections[1], kept[:64])])
        both = [(s, kept) for s in sections]
        assert value(rows, EXPRESSION, "recall@5", aggregation="patient-pooled", **one) == reached(direction, both)
        assert 0.2 < value(rows, EXPRESSION, "recall@5", **one) < 0.9
    sections[1].measured = np.arange(40) > 0
    assert ceiling_rows(HescapeRetrieval(n_boot=0), made, JUDGED) == []  # a panel of its own tells a section


def test_oracle_retrieval_is_chance_where_locations_do_not_differ():
    counts = np.random.default_rng(0).poisson(3.0, (150, 40))
    posterior = match_log_posterior(counts, np.full((150, 40), 3.0))
    assert np.exp(posterior) == pytest.approx(np.full((150, 150), 1 / 150))
    assert diagonal_ranks(posterior) == pytest.approx(np.full(150, 75.5))
    assert diagonal_ranks(posterior, ties="pessimistic") == pytest.approx(np.full(150, 150.0))


def test_the_posterior_is_bayes_rule_for_two_locations():
    mean = np.array([[2.0, 5.0], [4.0, 1.0]])
    y = np.array([[3, 2]])
    likelihood = np.prod(np.exp(-mean) * mean**y, axis=1)
    assert np.exp(match_log_posterior(y, mean))[0] == pytest.approx(likelihood / likelihood.sum())


def test_a_stated_dispersion_makes_the_match_less_certain():
    mean = np.array([[20.0, 50.0], [40.0, 10.0]])
    y = np.array([[20, 50]])
    sure, unsure = (match_log_posterior(y, mean, dispersion=d)[0, 0] for d in (0.0, 0.5))
    assert unsure < sure <= 0


# ---- true domains


def test_labels_are_read_off_the_true_domains_that_they_name():
    made = known_trial()
    probe = ceiling_rows(LinearProbe(n_boot=0), made, JUDGED)
    assert value(probe, DOMAINS, "auroc") == pytest.approx(1.0)
    assert value(probe, DOMAINS, "balanced-accuracy") > 0.95
    words = ceiling_rows(ZeroShot(n_boot=0), made, JUDGED)
    assert {r.direction for r in words} == {"text->image", "text->expression"}
    assert value(words, DOMAINS, "auroc", direction="text->image") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("knn-20", "balanced-accuracy@20"),
        ("simpleshot", "balanced-accuracy@1-shot"),
        ("learning-curve", "balanced-accuracy@1-patients"),
        ("clustering", "ari"),
        ("label-retrieval", "map"),
    ],
)
def test_every_protocol_of_labels_has_the_ceiling_of_true_domains(name, metric):
    options = {"episodes": 20} if name == "simpleshot" else {}
    rows = ceiling_rows(registry.protocol(name, {"n_boot": 0, **options}), known_trial(), JUDGED)
    assert {r.role for r in rows} == {"ceiling"}
    assert value(rows, DOMAINS, metric) > 0.85


def test_a_class_that_training_never_saw_is_scored_by_its_share():
    made = known_trial()
    for s in made.train:
        s.labels = np.where(s.labels == "fat", "", s.labels)
    words = ceiling_rows(ZeroShot(n_boot=0), made, JUDGED)
    assert value(words, DOMAINS, "auroc", aggregation="per-class", group="fat", direction="text->image") == 1.0


def test_prompts_decide_the_classes_of_the_ceiling_too():
    asked = ZeroShot(n_boot=0, prompts=Prompts(classes={"fat": ()}))
    words = ceiling_rows(asked, known_trial(), JUDGED)
    assert {r.group for r in words if r.aggregation == "per-class"} == {"fat"}


# ---- what they stand beside


class Composition(Features):
    """Shares of cell types: more than an image shows."""

    def features(self, section):
        return section.table.obsm["truth_composition"], np.ones(len(section.centres_um), bool)


class Both(Composition):
    """Composition in place of an image and of expression."""

    modalities = ("image", "expression")

    def pooled(self, section, modality):
        return self.features(section)


class Simulated:
    """A specimen as protocols see a section, without pixels."""

    def __init__(self, config, patient):
        made = Specimen(config, patient, 0)
        self.table = made.table
        self.id, self.patient = f"P{patient}-S0", f"P{patient}"
        self.centres_um = self.table.obsm["spatial"]
        self.captions, self.labels = list(self.table.obs["caption"]), self.table.obs["label"].to_numpy()
        source = {**made.truth_columns, "truth_dispersion": config.molecules.dispersion}
        self.info = SimpleNamespace(source=source)

    def expression(self):
        var = self.table.var
        return self.table.X, tuple(var.index), tuple(var["ensembl_id"]), var["measured"].to_numpy()


@pytest.fixture(scope="module")
def simulated():
    made = [Simulated(preset("tiny"), p) for p in range(4)]
    return Trial(tuple(made[:3]), tuple(made[3:]), {s.id: s.patient for s in made}, "made")


OVER = {(over, "all") for over in ("per-section", "pooled", "patient-pooled")}


def test_no_baseline_beats_a_ceiling_on_simulated_tissue(simulated):
    seen = Composition()
    cases = [
        (Expression(n_boot=0), expression_baselines(simulated, seen, placed=True), ("pearson", "mse")),
        (HestBenchmark(n_boot=0), expression_baselines(simulated, seen, placed=True), ("pearson", "mse")),
        (HescapeRetrieval(n_boot=0), retrieval_baselines(simulated, seen), ("recall@1", "recall@5:batches-of-64")),
        (Retrieval(n_boot=0), retrieval_baselines(simulated, seen), ("recall@1", "recall@10", "median-rank")),
        (
            LinearProbe(n_boot=0),
            [Subject(n, s) for n, s in (("p", Position()), ("d", Depth()), ("c", seen))],
            ("auroc",),
        ),
    ]
    for protocol, subjects, metrics in cases:
        ceilings = ceiling_rows(protocol, simulated, Both())
        assert ceilings
        rows = [r for subject in subjects for r in protocol.run(subject, simulated)]
        for row in rows:
            if row.metric not in metrics or row.value is None or (row.aggregation, row.group) not in OVER:
                continue
            beside = [
                c.value
                for c in ceilings
                if (c.metric, c.direction, c.group, c.aggregation)
                == (row.metric, row.direction, row.group, row.aggregation)
            ]
            assert beside
            for bound in beside:
                assert row.value >= bound if lower_is_better(row.metric) else row.value <= bound, (row, bound)


def test_a_section_without_truth_has_no_ceiling_that_needs_it_and_no_error():
    made = trial()
    assert truth_of(made.test[0]) is None
    rows = [r for p in PROTOCOLS for r in ceiling_rows(p, made, JUDGED)]
    assert {(r.task, r.model) for r in rows} == {("expression", COUNTING)}
    bare = known_trial(domains=False, expected=False)
    assert [r for p in PROTOCOLS if p.task != "expression" for r in ceiling_rows(p, bare, JUDGED)] == []


def test_one_test_section_without_truth_takes_the_ceiling_away_rather_than_changing_what_it_is_over():
    made = known_trial()
    made.test[0].table.layers.clear()
    assert {r.model for r in ceiling_rows(Expression(n_boot=0), made, JUDGED)} == {COUNTING}
    assert ceiling_rows(Retrieval(n_boot=0), made, JUDGED) == []


def test_ceilings_are_over_the_locations_that_the_subject_has():
    made, judged = known_trial(), FakeModel(absent=range(50))
    for protocol in PROTOCOLS:
        own = {(r.direction, r.metric, r.group): r.n for r in protocol.run(Subject("mine", judged), made)}
        rows = ceiling_rows(protocol, made, judged)
        assert rows
        assert all(r.n == own[r.direction, r.metric, r.group] for r in rows)


def test_a_section_that_the_subject_has_nothing_of_is_in_no_ceiling():
    class Half(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            return values, present & (section.id != "s2")

        pooled = embed

    rows = ceiling_rows(Expression(n_boot=0), known_trial(), Half())
    assert {r.group for r in rows if r.aggregation == "per-section"} == {"all", "s3"}


def test_ceilings_stand_in_the_table_by_default_and_say_what_they_know():
    made = known_trial()
    subject = Subject("mine", FakeModel())
    rows = evaluate(subject, made, PROTOCOLS)
    ceilings = [r for r in rows if r.role == "ceiling"]
    assert {(r.protocol.split("/")[0], r.model) for r in ceilings} == {
        ("expression", COUNTING),
        ("expression", EXPRESSION),
        ("hest-benchmark", COUNTING),
        ("hest-benchmark", EXPRESSION),
        ("retrieval", EXPRESSION),
        ("hescape-retrieval", EXPRESSION),
        ("linear-probe", DOMAINS),
        ("zero-shot", DOMAINS),
    }
    assert all(NOTES[r.model] in r.transductive for r in ceilings)
    for protocol in PROTOCOLS:
        beside = {r.model.removeprefix("mine: ") for r in rows if r.protocol == protocol.stamp} - {"mine"}
        assert beside <= {name for names in standing(protocol).values() for name in names}
    text = markdown(tabulate(rows))
    assert COUNTING in text
    assert NOTES[EXPRESSION] in text
    assert not [r for r in evaluate(subject, made, PROTOCOLS, with_baselines=False) if r.role == "ceiling"]


def test_truth_that_does_not_fit_is_refused():
    made = known_trial()
    made.test[0].info.source["truth_domains"] = ["fat"]
    with pytest.raises(ContractError, match="1 names for 3 domains"):
        ceiling_rows(LinearProbe(n_boot=0), made, JUDGED)
    made = known_trial()
    made.test[0].table.layers["truth_expected"][0, 0] = -1
    with pytest.raises(ContractError, match="negative"):
        ceiling_rows(Retrieval(n_boot=0), made, JUDGED)
