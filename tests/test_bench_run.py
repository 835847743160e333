"""`triglyph bench` on small cohorts on disk, and refits of a real model's heads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import small
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.protocol import FoldError
from triglyph.bench.refits import ShuffledRefits
from triglyph.bench.retrieval import Retrieval
from triglyph.encoders.base import Encoded, Encoder, EncoderCard
from triglyph.errors import ContractError, RecipeError, SplitError, StorageError
from triglyph.metrics.result import read_results
from triglyph.tissue.split import Fold, Split, holdout
from triglyph.workflows.bench import bench_compare, bench_list, bench_show
from triglyph.workflows.bench_run import bench_run

FINGERPRINT = "ab" * 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four patients whose stored `toy` features know some of the expression."""
    made = small.cohort(tmp_path_factory.mktemp("bench"), patients=4, side=10, images=False)
    rng = np.random.default_rng(0)
    for section in made:
        counts = np.log1p(section.expression()[0].toarray())
        section.embeddings.write(
            FINGERPRINT,
            (counts + rng.normal(size=counts.shape)).astype(np.float32),
            present=np.ones(len(counts), bool),
            card={"name": "toy", "encoder": {"modality": "image", "fitted": False}},
        )
    made.save_split(holdout(made.patients, name="held-out", test_patients=2))
    return made


def run(cohort, out, **changes):
    options = {"cohort": cohort.path, "embedding": "toy", "split": "held-out", "out": out, **changes}
    return bench_run(options.pop("name", "expression"), **options)


def test_a_run_leaves_its_rows_its_table_and_a_manifest_that_says_what_was_done(cohort, tmp_path, capsys):
    out = run(cohort, tmp_path / "run", set=["n_genes=5"])
    rows = read_results(out)
    beside = {"mean", "library size", "position", "toy: shuffled pairs", "ceiling: counting noise"}
    assert {r.model for r in rows} == {"toy", *beside}
    assert {r.role for r in rows} == {"method", "baseline", "control", "ceiling"}
    genes = pl.read_parquet(out / "genes.parquet")
    assert set(genes["metric"]) == {"pearson", "spearman", "spearman-depth-removed"}
    assert genes["gene"].n_unique() == 5
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["subject"] == {"embedding": "toy", "fingerprint": FINGERPRINT, "modality": "image"}
    assert set(manifest["protocols"]) == {r.protocol for r in rows}
    assert manifest["protocols"][rows[0].protocol]["constants"]["n_genes"] == 5
    assert manifest["split"]["digest"] == cohort.split("held-out").digest()
    assert manifest["cpu_minutes"] >= 0
    assert (out / "table.md").read_text().startswith("## expression")
    assert "expression" in capsys.readouterr().out


def test_all_takes_every_protocol_that_applies_and_says_what_it_leaves_out(cohort, tmp_path, monkeypatch, capsys):
    # Communities take seconds of imports that show nothing here.
    one_community = lambda x, *, resolutions, **_: {r: np.zeros(len(x)) for r in resolutions}  # noqa: E731
    monkeypatch.setattr("triglyph.bench.labels.clustering.leiden", one_community)
    out = run(cohort, tmp_path / "run", name="all", baselines=False)
    labels = {"linear-probe", "knn", "few-shot", "clustering", "label-retrieval", "batch-effect"}
    assert {r.task for r in read_results(out)} == {*labels, "expression"}
    manifest = json.loads((out / "manifest.json").read_text())
    left_out = manifest["left_out"]
    assert manifest["inputs"] == ["image"]  # as for an audit of the run
    assert "retrieval: needs two modalities" in left_out
    printed, table = capsys.readouterr().out, (out / "table.md").read_text()
    assert all(f"- {note}" in table for note in left_out)
    assert all(note.split(":")[0] in printed for note in left_out)


def split_of(cohort, name, *tested):
    """A split with one fold for each group of tested sections."""
    folds = [
        Fold(name=f"fold{i}", train=tuple(s for s in cohort.ids if s not in test), test=tuple(test))
        for i, test in enumerate(tested)
    ]
    cohort.save_split(Split(name=name, level="patient", folds=tuple(folds)))
    return name


def test_a_fold_that_lacks_what_a_protocol_needs_is_left_out_in_words_and_the_rest_is_judged(cohort, tmp_path, capsys):
    a, b, c, d = cohort.ids
    out = run(cohort, tmp_path / "run", name="batch-effect", split=split_of(cohort, "uneven", [a], [b, c], [c, d]))
    rows = [r for r in read_results(out) if r.metric == "ilisi"]
    single = [r.value for r in rows if r.model == "toy" and r.fold]
    assert {r.fold for r in rows} == {"fold1", "fold2", ""}
    (mean,) = [r for r in rows if r.model == "toy" and not r.fold]
    assert (mean.value, mean.n) == (pytest.approx(np.mean(single)), 2)
    (note,) = json.loads((out / "manifest.json").read_text())["left_out"]
    assert note == f"batch-effect, fold fold0 (toy, position): level patient: only one section, {a}"
    assert note in (out / "table.md").read_text()
    assert "only one section" in capsys.readouterr().out
    with pytest.raises(FoldError, match="only one section"):
        run(cohort, tmp_path / "other", name="batch-effect", split=split_of(cohort, "ones", *([s] for s in cohort.ids)))
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["run"]


def test_a_run_of_which_only_baselines_were_judged_is_refused(cohort, tmp_path, monkeypatch):
    whole = LinearProbe.run

    def lacking(self, subject, trial):
        if subject.name == "toy":
            raise FoldError("toy lacks something")
        return whole(self, subject, trial)

    monkeypatch.setattr(LinearProbe, "run", lacking)
    with pytest.raises(FoldError, match="toy lacks something"):
        run(cohort, tmp_path / "run", name="linear-probe")
    assert not list(tmp_path.iterdir())


def test_features_are_found_by_fingerprint_too_and_an_ambiguous_name_is_refused(cohort, tmp_path):
    run(cohort, tmp_path / "run", embedding=FINGERPRINT, baselines=False)
    with pytest.raises(ContractError, match=r"there are toy"):
        run(cohort, tmp_path / "other", embedding="toi")
    section = cohort[cohort.ids[0]]
    section.embeddings.write(
        "cd" * 8,
        np.zeros((100, 2), np.float32),
        present=np.ones(100, bool),
        card={"name": "toy", "encoder": {"modality": "image", "fitted": False}},
    )
    with pytest.raises(ContractError, match="2 states"):
        run(cohort, tmp_path / "third")
    (section.embeddings.folder / ("cd" * 8)).rename(section.path / "set-aside")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "x"}, RecipeError, "not both"),
        ({"embedding": None, "baselines": False}, RecipeError, "nothing to judge"),
        ({"split": None}, SplitError, "no split was named"),
        ({"split": "other"}, SplitError, "no split 'other'"),
        ({"fold": "7"}, SplitError, "no fold '7'"),
        ({"name": "ridge"}, RecipeError, "no protocol"),
        ({"set": ["n_gene=3"]}, RecipeError, "n_genes"),
        ({"name": "all", "set": ["n_genes=3"]}, RecipeError, "belong to one protocol"),
        ({"name": "linear-probe", "set": ["variant=a"]}, RecipeError, "'her2st', 'A', 'B' or 'C'"),
        ({"null": 3}, RecipeError, "95th percentile"),
        ({"allow": ["donors"]}, RecipeError, "no finding donors"),
        ({"embedding": None, "model": Path("nowhere")}, StorageError, "not a run"),
        ({"prompts": "missing.yaml", "name": "all"}, RecipeError, "no such file"),
        ({"prompts": "missing.yaml"}, RecipeError, "has no prompts"),
        ({"panel": Path("panel.txt")}, RecipeError, "has no panel"),
    ],
)
def test_what_options_alone_show_is_said_before_anything_is_opened(cohort, tmp_path, monkeypatch, changes, error, says):
    monkeypatch.setattr("triglyph.workflows.bench_subjects.open_cohort", lambda *_, **__: pytest.fail("opened"))
    if "prompts" in changes:
        changes = {**changes, "prompts": tmp_path / changes["prompts"]}
    with pytest.raises(error, match=says):
        run(cohort, tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"label_column": "class"}, RecipeError, "how to read an .h5ad"),
        ({"name": "retrieval"}, ContractError, "two modalities"),
    ],
)
def test_what_cannot_be_run_is_said_and_nothing_is_left(cohort, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        run(cohort, tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_refusals_load_nothing_heavy(cohort, tmp_path):
    code = """
import sys
from triglyph.errors import TriglyphError
from triglyph.workflows.bench_run import bench_run
good = dict(cohort=sys.argv[1], out=sys.argv[2], embedding="toy", split="held-out")
for name, wrong in (
    ("expression", {"split": "other"}), ("expression", {"embedding": None, "model": "nowhere"}),
    ("ridge", {}), ("expression", {"set": ["n_gene=3"]}),
):
    try:
        bench_run(name, **{**good, **wrong})
    except TriglyphError:
        print("refused")
print([m for m in ("torch", "spatialdata", "anndata", "sklearn", "scipy.stats") if m in sys.modules])
"""
    command = [sys.executable, "-c", code, str(cohort.path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:5] == ["refused"] * 4 + ["[]"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_never_written_over(cohort, tmp_path, capsys):
    capsys.readouterr()
    run(cohort, tmp_path / "run", baselines=False, quiet=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(StorageError, match="already written"):
        run(cohort, tmp_path / "run", baselines=False)


def test_runs_are_compared_on_the_screen_and_in_a_folder(cohort, tmp_path, capsys):
    first = run(cohort, tmp_path / "first")
    second = run(cohort, tmp_path / "second", set=["alphas=[1000000]"])
    third = run(cohort, tmp_path / "third")
    capsys.readouterr()
    target = bench_compare([first, second, third], out=tmp_path / "comparison", reference="mean")
    written = ("html", "csv", "tex", "md")
    assert {p.name for p in target.iterdir()} == {*(f"comparison.{e}" for e in written), "tests.csv", "patients.csv"}
    text = (target / "comparison.md").read_text()
    assert text.count("protocol expression/") == 2
    assert " @ " not in text  # equal values of equal quantities are one column
    assert "toy" in capsys.readouterr().out
    page = (target / "comparison.html").read_text()
    assert "Mean difference to mean, patient by patient" in page
    ways = [f"{read_results(of)[0].protocol} on split {read_results(of)[0].split}" for of in (first, second)]
    assert " and ".join(ways) in page  # under other constants nothing is compared, and it is said
    with pytest.raises(StorageError, match="already written"):
        bench_compare([first, third], out=target)
    with pytest.raises(RecipeError, match="no run"):
        bench_compare([])


def test_protocols_are_listed_and_shown_with_their_constants(capsys):
    bench_list()
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("retrieval", "zero-shot", "linear-probe", "expression"))
    bench_show("expression", set=["standardise=per-section"])
    shown = capsys.readouterr().out
    assert "z-scored within each test section" in shown
    assert "digest:" in shown


# ---- refits of a model's heads


class _Toy(Encoder):
    def __init__(self):
        super().__init__()
        self.card = EncoderCard(
            name=f"toy-{self.modality}", modality=self.modality, dim=12, pooling="none", weights="none"
        )

    def encode(self, inputs):
        return Encoded(inputs["x"])


class ToyExpression(_Toy):
    modality = "expression"

    def prepare(self, raw):
        return {"x": torch.log1p(torch.from_numpy(raw.counts.toarray()).float())}


class ToyText(_Toy):
    modality = "text"

    def prepare(self, raw):
        return {"x": torch.tensor([[float(sum(map(ord, t)) % (i + 5)) for i in range(12)] for t in raw])}


@pytest.fixture
def refits(cohort):
    from triglyph.apply.trained import TrainedModel
    from triglyph.models.alignment import Alignment, AlignmentConfig

    config = AlignmentConfig(
        towers={"expression": {"encoder": "toy-expression"}, "text": {"encoder": "toy-text"}},
        pairs={"expression-text": 1.0},
        dim=8,
    )
    torch.manual_seed(0)
    model = Alignment(config, {"expression": ToyExpression(), "text": ToyText()})
    trial = Trial.of(cohort, cohort.split("held-out"))
    manifest = {"training_sections": [s.id for s in trial.train]}
    return ShuffledRefits(TrainedModel(model, manifest), trial, epochs=2, batch_size=32), trial


def test_refits_share_features_differ_by_seed_and_are_judged_like_the_model(refits):
    make, trial = refits
    first, again, other = make(0), make(0), make(1)
    section = trial.test[0]
    a, present = first.embed(section, "text")
    assert np.isnan(a[~present]).all()
    np.testing.assert_allclose(np.linalg.norm(a[present], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(a, again.embed(section, "text")[0])
    assert np.abs(a[present] - other.embed(section, "text")[0][present]).max() > 1e-3
    rows = Retrieval().run(Subject("null", first), trial)
    assert {r.direction for r in rows} == {"expression->text", "text->expression"}


def test_sentences_and_captions_go_through_the_same_refitted_head(refits):
    make, trial = refits
    first, section = make(3), trial.test[0]
    values, present = first.embed(section, "text")
    at = int(np.flatnonzero(present)[0])
    np.testing.assert_allclose(first.embed_text([section.captions[at]])[0], values[at], atol=1e-6)


def test_refits_never_see_a_test_section(refits):
    make, trial = refits
    assert make(0).training_sections == tuple(s.id for s in trial.train)
    n = sum(s.n_locations for s in trial.train)
    assert all(len(values) == n == len(present) for values, present in make.features.values())


def test_a_split_that_the_audit_fails_is_run_only_by_name_and_stamped(cohort, tmp_path):
    first, *rest = sorted(cohort.patients)
    other = [s for s in rest if cohort.patients[s] != cohort.patients[first]]
    spoilt = cohort.path / "splits" / "spoilt.json"
    fold = {"name": "0", "train": other, "val": [], "test": [first]}
    spoilt.write_text(json.dumps({"name": "spoilt", "level": "patient", "folds": [fold]}))
    with (cohort.path / "sections.csv").open() as stream:
        kept = stream.read()
    manifest = cohort.manifest.copy()
    manifest["donor"] = ["same" if s in (first, other[0]) else s for s in manifest.index]
    manifest.to_csv(cohort.path / "sections.csv")
    try:
        with pytest.raises(SplitError, match="donor-on-both-sides"):
            run(cohort, tmp_path / "run", split="spoilt")
        with pytest.raises(RecipeError, match="no finding donors"):
            run(cohort, tmp_path / "run", split="spoilt", allow=["donors"])
        out = run(cohort, tmp_path / "run", split="spoilt", allow=["donor-on-both-sides"])
    finally:
        (cohort.path / "sections.csv").write_text(kept)
        spoilt.unlink()
    rows = read_results(out)
    assert all("audit failed and was allowed: donor-on-both-sides" in r.transductive for r in rows)
    audit = json.loads((out / "manifest.json").read_text())["audit"]
    assert "donor-on-both-sides" in {f["name"] for f in audit["findings"]}


def test_a_split_that_passes_leaves_its_audit_in_the_manifest_and_no_stamp(cohort, tmp_path):
    out = run(cohort, tmp_path / "run")
    assert not any("audit" in note for r in read_results(out) for note in r.transductive)
    audit = json.loads((out / "manifest.json").read_text())["audit"]
    assert not [f for f in audit["findings"] if f["severity"] == "fail"]
    assert audit["unchecked"]
