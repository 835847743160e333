"""`clustering` and `label-retrieval` against plain computations, and where they are undefined."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, average_precision_score, normalized_mutual_info_score

from bench_fakes import FakeModel, FakeSection, RandomModel, trial
from triglyph.bench.contracts import Subject
from triglyph.bench.labels.clustering import Clustering
from triglyph.bench.labels.label_retrieval import LabelSearch
from triglyph.errors import ContractError

MODEL = FakeModel(noise=2.0)
SUBJECT = Subject("fake", MODEL)


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, [(r.metric, r.aggregation, r.group, r.level) for r in found]
    return found[0]


def test_k_means_is_the_mean_over_starts_at_the_number_of_classes_that_are_large_enough():
    made = trial(test=1)
    section = made.test[0]
    fat = np.flatnonzero(section.labels == "fat")
    section.labels[fat[9:]] = ""
    rows = Clustering(n_starts=4).run(SUBJECT, made)
    kept = np.isin(section.labels, ["gland", "stroma"])
    x, y = MODEL.embed(section, "image")[0][kept], section.labels[kept].astype(str)
    runs = [KMeans(2, n_init=1, random_state=i).fit_predict(x) for i in range(4)]
    of = {"aggregation": "per-section", "group": section.id}
    row = one(rows, metric="ari", **of)
    assert row.value == pytest.approx(np.mean([adjusted_rand_score(y, r) for r in runs]))
    assert (row.n, row.chance) == (kept.sum(), 0.0)
    nmi = np.mean([normalized_mutual_info_score(y, r) for r in runs])
    assert one(rows, metric="nmi", **of).value == pytest.approx(nmi)
    three = one(Clustering(n_starts=4, min_locations=9).run(SUBJECT, made), metric="ari", **of)
    assert three.n == kept.sum() + 9


def test_the_number_of_clusters_is_declared_as_seen():
    rows = Clustering(n_starts=2).run(SUBJECT, trial())
    assert all("number of k-means clusters" in r.transductive[0] for r in rows)


def test_clusters_do_not_ask_for_training_labels():
    made = trial()
    for section in made.train:
        section.labels[:] = ""
    rows = Clustering(n_starts=2).run(SUBJECT, made)
    assert one(rows, metric="ari", aggregation="per-section", group="all").value > 0.1
    assert Clustering(n_starts=2).run(SUBJECT, replace(made, train=())) == rows


def test_features_that_say_nothing_agree_no_better_than_chance():
    rows = Clustering(n_starts=5).run(Subject("random", RandomModel(0)), trial())
    assert one(rows, metric="ari", aggregation="per-section", group="all").value == pytest.approx(0.0, abs=0.03)


def test_one_class_is_nothing_to_agree_with():
    made = trial()
    made.test[0].labels[:] = "fat"
    rows = Clustering(n_starts=2).run(SUBJECT, made)
    of = {"metric": "ari", "aggregation": "per-section"}
    assert one(rows, group="test0.0", **of).value is None
    assert one(rows, group="all", **of).value == one(rows, group="test1.0", **of).value


def test_leiden_stands_beside_k_means_where_igraph_is_and_is_said_to_lack_where_it_is_not(caplog):
    rows = Clustering(n_starts=2).run(SUBJECT, trial(test=1))
    found = {r.metric for r in rows if "leiden" in r.metric}
    if importlib.util.find_spec("igraph") is None:
        assert not found
        assert caplog.text.count("igraph is not installed") == 1
    else:
        assert found == {f"{m}@leiden-{r}" for m in ("ari", "nmi") for r in ("0.5", "1")}
    caplog.clear()
    assert not [r for r in Clustering(n_starts=2, resolutions=()).run(SUBJECT, trial()) if "leiden" in r.metric]
    assert "igraph" not in caplog.text


# ---- retrieval of labels


def test_label_retrieval_equals_brute_force_without_the_own_patient():
    made = trial(train=3, test=1)
    own = FakeSection("own", made.test[0].patient)
    own.labels[:] = made.test[0].labels[::-1]
    made = replace(made, train=(*made.train, own), patients={**made.patients, "own": own.patient})
    x = np.concatenate([MODEL.embed(s, "image")[0] for s in made.train])
    y = np.concatenate([s.labels for s in made.train]).astype(str)
    mean, others = x.mean(axis=0), np.repeat([True, True, True, False], 196)
    section = made.test[0]
    asked = MODEL.embed(section, "image")[0] - mean
    gallery, labels = (x - mean)[others], y[others]
    cosine = (asked / np.linalg.norm(asked, axis=1)[:, None]) @ (gallery / np.linalg.norm(gallery, axis=1)[:, None]).T
    order = np.argsort(-cosine, axis=1)
    right = labels[order] == section.labels.astype(str)[:, None]
    rows = LabelSearch().run(SUBJECT, made)
    of = {"aggregation": "per-section", "group": section.id}
    for k in (1, 3, 5):
        row = one(rows, metric=f"acc@{k}", **of)
        assert row.value == pytest.approx(right[:, :k].any(axis=1).mean())
        assert (row.n, row.n_gallery) == (196, 3 * 196)
        assert row.ci_low <= row.value <= row.ci_high
    share = np.array([(labels == c).mean() for c in section.labels])
    assert one(rows, metric="acc@1", **of).chance == pytest.approx(share.mean())
    assert one(rows, metric="mvacc@1", **of).value == pytest.approx(one(rows, metric="acc@1", **of).value)
    precision = [average_precision_score(labels == c, s) for c, s in zip(section.labels, cosine, strict=True)]
    assert one(rows, metric="map", **of).value == pytest.approx(np.mean(precision))
    assert one(rows, metric="acc@1", **of).level == "within-patient"


def test_queries_that_nothing_can_answer_are_counted_and_left_out():
    made = trial()
    made.test[0].labels[:50] = "bone"
    rows = LabelSearch().run(SUBJECT, made)
    of = {"aggregation": "per-section", "group": "test0.0"}
    assert one(rows, metric="queries-without-answer", **of).value == 50
    assert one(rows, metric="acc@1", **of).n == 146
    for section in made.test:
        section.labels[:] = "bone"
    with pytest.raises(ContractError, match="no test location has its label"):
        LabelSearch().run(SUBJECT, made)


def test_a_gallery_of_the_own_patient_alone_is_refused():
    made = trial(train=1, test=1)
    made.test[0].patient = made.train[0].patient
    made = replace(made, patients=dict.fromkeys(made.patients, made.train[0].patient))
    with pytest.raises(ContractError, match="another patient"):
        LabelSearch().run(SUBJECT, made)


def test_centring_is_a_constant_and_changes_the_search():
    class Shifted(FakeModel):
        def embed(self, section, modality):
            values, present = super().embed(section, modality)
            return values + 5.0, present

    subject, made = Subject("shifted", Shifted(noise=2.0)), trial()
    centred, plain = (
        one(LabelSearch(centre=c).run(subject, made), metric="map", aggregation="per-section", group="all")
        for c in (True, False)
    )
    assert centred.value > plain.value
    assert LabelSearch(centre=False).stamp != LabelSearch().stamp
    unshifted = one(LabelSearch().run(SUBJECT, made), metric="map", aggregation="per-section", group="all")
    assert centred.value == pytest.approx(unshifted.value)
