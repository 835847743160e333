"""`bench compare`'s report says what the rows say, marks what rests on what, and drops nothing silently."""

from __future__ import annotations

import csv
import json
import re
from html import unescape

import numpy as np
import polars as pl
import pytest

from triglyph.bench.null import NULL, summaries
from triglyph.errors import ContractError, RecipeError, StorageError
from triglyph.metrics.paired import compare, corrected
from triglyph.metrics.per_gene import from_results, gene_values, read_genes, write_genes
from triglyph.metrics.result import Result, write_results
from triglyph.report import comparison_figures as figures
from triglyph.report.comparison import write_comparison
from triglyph.report.comparison_grids import Family, grids, headline, number
from triglyph.report.comparison_latex import escaped, latex
from triglyph.report.comparison_study import ALL_FOLDS, Run, study
from triglyph.report.comparison_tables import values_table

EXPRESSION, LABELS = "expression/1/aaaaaaaa", "linear-probe/1/bbbbbbbb"
MEANS = {"ours": 0.5, "theirs": 0.4, "third": 0.402}


def values(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Patients that differ more than the models do; `ours` is better, the other two are alike."""
    rng = np.random.default_rng(seed)
    patient = rng.normal(0, 0.05, n)
    return {name: mean + patient + rng.normal(0, 0.02, n) for name, mean in {**MEANS, "mean": 0.1}.items()}


def rows(model, of, *, folds=1, **other):
    """Each patient's row and the mean of each fold."""
    base = {
        "task": "expression", "protocol": EXPRESSION, "metric": "pearson", "model": model, "role": "method",
        "split": "0123/patients", "level": "patient", "direction": "image->expression", "aggregation": "per-patient",
        "chance": 0.0, "n": 100, "n_genes": 50, **other,
    }  # fmt: skip
    found = [
        Result(
            **base, value=None if np.isnan(v) else float(v), group=f"P{i:02d}", fold=f"{i % folds}" if folds > 1 else ""
        )
        for i, v in enumerate(of)
    ]
    for fold in dict.fromkeys(r.fold for r in found):
        here = [r.value for r in found if r.fold == fold and r.value is not None]
        found.append(Result(**base, value=float(np.mean(here)) if here else None, group="all", fold=fold))
    return found


def run(folder, made, *, genes=None, **manifest):
    """A run folder."""
    folder.mkdir(parents=True)
    write_results(made, folder)
    about = {
        "kind": "bench", "triglyph": "0", "subject": {"embedding": folder.name}, "tries": 1, "cpu_minutes": 2.5,
        "minutes": 2.0, "cohort": {"name": "c", "digest": "c0ffee00c0ffee00"}, "protocols": {},
        "split": {"name": "patients", "digest": "0123", "level": "patient", "folds": [""]},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**about, **manifest}))
    if genes is not None:
        write_genes(genes, folder)
    return folder


def gene_frame(model, shift, protocol=EXPRESSION, section="S1"):
    names, of = ["A_1", "B", "C"], np.array([0.1, 0.5, np.nan]) + shift
    return gene_values(
        names, of, task="expression", protocol=protocol, split="0123/patients", fold="", level="patient", model=model,
        metric="pearson", section=section, patient="P00",
    )  # fmt: skip


def three(root, n, **other):
    """Three runs of one method each, on two protocols, with a baseline; `ours` has a null and genes."""
    made = values(n)
    folders = []
    for i, name in enumerate(MEANS):
        of = [*rows(name, made[name], **other), *rows("mean", made["mean"], role="baseline", **other)]
        of += rows(name, made[name] + 0.3, task="linear-probe", protocol=LABELS, metric="auroc", direction="", **other)
        of += rows(name, 1 - made[name], metric="mse", **other)
        if name == "ours":
            null = [r for s in range(20) for r in rows(NULL, made["mean"] + s / 1000, role="control", seed=s)]
            null += [r.model_copy(update={"metric": "mse", "value": 1 - r.value}) for r in null]
            null = [r for r in null if r.group == "all"]
            of += [*null, *summaries(null)]
        genes = [gene_frame(name, i / 10)] if name != "third" else None
        folders.append(run(root / name, of, genes=genes, tries=i + 1, allowed=["random-spots"] if i == 1 else []))
    return folders


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The study of 12 patients, and its report."""
    root = tmp_path_factory.mktemp("twelve")
    made = study([Run.open(f) for f in three(root, 12)], reference="theirs")
    out = root / "report"
    out.mkdir()
    write_comparison(made, out)
    return made, out


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """As `twelve`, of 4 patients."""
    root = tmp_path_factory.mktemp("four")
    made = study([Run.open(f) for f in three(root, 4)])
    out = root / "report"
    out.mkdir()
    write_comparison(made, out)
    return made, out


def cells(page: str) -> list[list[str]]:
    """Rows of all tables as text."""
    found = re.findall(r"<tr.*?>(.*?)</tr>", page, re.DOTALL)
    return [[unescape(c) for c in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)] for row in found]


def table(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_values_in_the_page_and_in_the_csv_are_those_of_the_rows(twelve):
    made, out = twelve
    page = cells((out / "comparison.html").read_text())
    whole = [r for r in made.holders if r.group == "all"]
    written = table(out / "comparison.csv")
    assert len(written) == len(whole) == 10
    for row in whole:
        assert any(line[0] == row.model and any(c.startswith(number(row.value)) for c in line[4:]) for line in page)
        same = [w for w in written if (w["model"], w["metric"]) == (row.model, row.metric)]
        assert [float(w["value"]) for w in same] == [row.value]
    people = {(p["model"], p["metric"], p["patient"]): float(p["value"]) for p in table(out / "patients.csv")}
    assert people["ours", "pearson", "P03"] == values(12)["ours"][3]
    assert len(people) == 12 * 10


def test_tests_are_those_of_the_values_with_holm_over_the_models_of_one_metric(twelve):
    made, out = twelve
    of = values(12)
    names = ("ours", "third", "mean")
    expected = corrected([compare(of[m], of["theirs"], names=(m, "theirs")) for m in names])
    found = {c.paired.a: c.paired for c in made.tests if c.quantity.metric == "pearson"}
    assert found == {p.a: p for p in expected}
    assert [found[m].verdict for m in names] == ["better", "cannot be told apart", "worse"]
    written = [t for t in table(out / "tests.csv") if t["metric"] == "pearson" and "all against theirs" in t["family"]]
    assert {t["a"]: float(t["p_holm"]) for t in written} == {p.a: p.p_adjusted for p in expected}
    assert {t["a"]: t["sentence"] for t in written} == {p.a: p.sentence() for p in expected}
    page = (out / "comparison.html").read_text()
    assert "cannot be told apart" in page


def test_what_was_tried_paid_allowed_and_seen_stands_beside_the_numbers(twelve):
    _, out = twelve
    lines = cells((out / "comparison.html").read_text())
    theirs = next(line for line in lines if line[:3] == ["theirs", "reference", "2"])
    assert theirs[3] == "2.5"
    assert all("‡" in value for value in theirs[4:])
    assert any(line[:4] == ["mean", "baseline", "1, 2, 3", "2.5, 2.5,\n2.5"] for line in lines)
    assert any(line[0] == "theirs" and "random-spots" in line for line in lines)
    assert {EXPRESSION, LABELS} <= {line[0] for line in lines if line}
    written = table(out / "comparison.csv")
    assert {(w["runs"], w["tries"], w["cpu_minutes"]) for w in written if w["model"] == "mean"} == {
        ("ours; theirs; third", "1; 2; 3", "2.5; 2.5; 2.5")
    }


def test_a_null_stands_in_its_runs_rows_and_stars_what_is_better(twelve):
    made, _ = twelve
    (grid,) = [g for g in grids(made) if g.family.protocol == EXPRESSION]
    high = next(r.value for r in made.runs[0].rows if r.model.endswith("95th percentile"))
    assert grid.entries["ours", "pearson"].null_high == high
    assert grid.entries["ours", "pearson"].text().split("\n")[0].endswith("*")
    assert grid.entries["ours", "mse"].beats_null  # lower is better
    assert grid.entries["theirs", "pearson"].null_high is None
    assert grid.nulls()["ours"]["pearson"][1] == high


def test_only_a_method_that_beats_every_other_by_the_tests_is_bold(twelve, four, tmp_path):
    assert {g.family.task: set(g.best) for g in grids(twelve[0])} == {
        "expression": {("ours", "pearson"), ("ours", "mse")},
        "linear-probe": {("ours", "auroc")},
    }
    tex = (twelve[1] / "comparison.tex").read_text()
    assert tex.count(r"\textbf") == 3
    assert not any(g.best for g in grids(four[0]))
    assert r"\textbf" not in (four[1] / "comparison.tex").read_text()
    # The second best is as good: the best of three is not bold for beating the third.
    of = values(12)
    made = [run(tmp_path / name, rows(name, of[name] + (0.2 if name != "ours" else 0))) for name in MEANS]
    assert not any(g.best for g in grids(study([Run.open(f) for f in made], reference="ours")))


def test_below_six_patients_no_p_is_claimed_and_every_value_is_printed(four):
    made, out = four
    assert made.reference == "ours"
    assert {c.paired.verdict for c in made.tests} == {"too few patients for a claim"}
    assert {t[k] for t in table(out / "tests.csv") for k in ("p_sign_flips", "p_wilcoxon", "p_holm", "ci_low")} == {""}
    lines = cells((out / "comparison.html").read_text())
    tested = [line for line in lines if len(line) == 11 and line[2] == "too few patients for a claim"]
    assert len(tested) == len(made.tests)
    assert all(line[-3:] == ["–", "–", "–"] and line[3].endswith(" of 4") for line in tested)
    for name, of in values(4).items():
        assert [name, "pearson", *(number(v) for v in of)] in lines


def test_the_page_needs_nothing_else_and_every_figure_has_words(twelve):
    made, out = twelve
    page = (out / "comparison.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 5
    assert all(len(re.search(r'alt="(.*?)"', image).group(1)) > 30 for image in images)
    assert page.count('<th scope="col">') > 20
    first = made.tests[0].paired
    assert f"Forest plot. ours, pearson: {first.difference:+.3f} [{first.ci.low:+.3f}, " in unescape(page)


HOSTILE = '<script>alert("a")</script> & 100_% $\\x$ #1 {a} \\b ~^'


def test_hostile_names_are_only_text(tmp_path):
    of = values(6)
    first = run(tmp_path / "r", [*rows(HOSTILE, of["ours"]), *rows("mean", of["mean"], role="baseline")])
    made = study([Run.open(first)])
    write_comparison(made, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert "<script" not in page
    assert any(line and line[0] == HOSTILE for line in cells(page))
    tex = (tmp_path / "comparison.tex").read_text()
    line = next(line for line in tex.splitlines() if "script" in line and line.endswith(r"\\"))
    assert line.startswith(
        r"\textless{}script\textgreater{}alert(\textquotedbl{}a\textquotedbl{})\textless{}/script\textgreater{} \& "
        r"100\_\% \$\textbackslash{}x\$ \#1 \{a\} \textbackslash{}b \textasciitilde{}\textasciicircum{} & "
    )
    assert {w["model"] for w in table(tmp_path / "comparison.csv")} == {HOSTILE, "mean"}
    assert escaped("a\n\n b") == "a b"


def test_the_same_runs_give_the_same_bytes(four, tmp_path):
    _, before = four
    write_comparison(study([Run.open(f) for f in three(tmp_path / "again", 4)]), tmp_path)
    for name in ("comparison.html", "comparison.csv", "tests.csv", "patients.csv", "comparison.tex"):
        assert (tmp_path / name).read_bytes() == (before / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"protocol": "expression/1/cccccccc"}, "protocol expression/1/cccccccc here, expression/1/aaaaaaaa for ours"),
        ({"split": "9999/patients"}, "split 9999/patients here, 0123/patients for ours"),
        ({"level": "within-patient"}, "level within-patient here, patient for ours"),
        ({"metric": "spearman"}, "ours has no rows of single patients for it"),
        ({"n_gallery": 7}, "chose from galleries of different size: 7 against 100"),
    ],
)
def test_what_was_judged_otherwise_is_listed_with_the_reason_and_its_values_are_shown(tmp_path, changes, why):
    of = values(6)
    first = run(tmp_path / "a", rows("ours", of["ours"], n_gallery=100))
    second = run(tmp_path / "b", rows("theirs", of["theirs"], **{"n_gallery": 100, **changes}))
    made = study([Run.open(first), Run.open(second)])
    assert made.tests == ()
    (apart,) = made.apart
    assert "theirs" in apart.who
    assert why in apart.why
    assert "spearman" in apart.what or "pearson" in apart.what
    write_comparison(made, tmp_path)
    lines = cells((tmp_path / "comparison.html").read_text())
    assert list(apart) in lines
    assert any(line[0] == "theirs" and line[-1] == number(of["theirs"].mean()) for line in lines)
    assert table(tmp_path / "tests.csv") == []


def test_one_question_asked_with_two_sets_of_constants_is_compared_twice_and_never_across(tmp_path):
    of = values(6)
    folders = [
        run(tmp_path / f"r{i}", [*rows("ours", of["ours"], protocol=p), *rows("theirs", of["theirs"], protocol=p)])
        for i, p in enumerate((EXPRESSION, "expression/1/cccccccc"))
    ]
    made = study([Run.open(f) for f in folders])
    assert {(c.paired.a, c.paired.family) for c in made.tests} == {("theirs", 1)}
    assert len(made.tests) == 2
    assert [a.what for a in made.apart] == ["expression, image → expression: pearson"]
    assert "cccccccc on split 0123/patients: each is compared" in made.apart[0].why


def test_probes_of_image_and_expression_meet_in_one_family_and_other_constants_are_named(tmp_path):
    of, probe = values(6), {"task": "linear-probe", "metric": "auroc"}
    folders = [
        run(
            tmp_path / name,
            rows(name, of[name], protocol=f"linear-probe/1/{stamp}", direction=f"{reads}->label", **probe),
            protocols={f"linear-probe/1/{stamp}": {"constants": {"variant": variant, "seed": 0}}},
        )
        for name, reads, stamp, variant in (
            ("ours", "image", "bbbbbbbb", "default"),
            ("theirs", "expression", "bbbbbbbb", "default"),
            ("third", "expression", "dddddddd", "A"),
        )
    ]
    made = study([Run.open(f) for f in folders])
    assert [(c.paired.a, c.paired.b) for c in made.tests] == [("theirs", "ours")]
    assert [sorted(m for m, _ in g.entries) for g in grids(made)] == [["ours", "theirs"], ["third"]]
    (apart,) = made.apart
    assert "protocol linear-probe/1/dddddddd here, linear-probe/1/bbbbbbbb for ours" in apart.why
    assert apart.why.endswith("(variant is default or A)")


def test_runs_on_one_split_that_read_other_data_are_compared_and_said(tmp_path):
    of = values(6)
    first = run(tmp_path / "a", rows("ours", of["ours"]))
    second = run(tmp_path / "b", rows("theirs", of["theirs"]), cohort={"name": "c", "digest": "0ther"})
    made = study([Run.open(first), Run.open(second)])
    assert len(made.tests) == 1
    assert [a.who for a in made.apart] == ["a: cohort c0ffee00c0ffee00; b: cohort 0ther"]


def test_a_model_that_differs_between_runs_is_two_and_can_be_the_reference(tmp_path):
    of = values(6)
    folders = [run(tmp_path / name, rows("toy", of[of_name])) for name, of_name in (("a", "ours"), ("b", "theirs"))]
    runs = [Run.open(f) for f in folders]
    assert study(runs).reference == "toy @ a"
    assert [c.paired.a for c in study(runs, reference="toy @ b").tests] == ["toy @ a"]
    with pytest.raises(RecipeError, match="there are toy @ a, toy @ b"):
        study(runs, reference="toy")


def test_a_first_run_without_a_method_needs_a_reference(tmp_path):
    of = values(6)
    runs = [Run.open(run(tmp_path / "a", rows("mean", of["mean"], role="baseline")))]
    with pytest.raises(RecipeError, match="give --reference; there are mean"):
        study(runs)
    assert study(runs, reference="mean").tests == ()


def test_folds_are_summed_over_their_patients_and_over_themselves_and_so_is_the_null(tmp_path):
    of = values(7)
    made = rows("ours", of["ours"], folds=2) + rows("theirs", of["theirs"], folds=2)
    for seed in range(20):
        made += [r for r in rows(NULL, of["mean"] + seed, folds=2, role="control", seed=seed) if r.group == "all"]
    read = study([Run.open(run(tmp_path / "r", made))])
    found = {(g.aggregation, g.fold): g for g in grids(read)}
    assert set(found) == {("per-patient", "0"), ("per-patient", "1"), (ALL_FOLDS, ""), ("folds of per-patient", "")}
    assert headline(list(found.values())).aggregation == ALL_FOLDS
    whole = found[ALL_FOLDS, ""].entries["ours", "pearson"]
    assert whole.row.value == pytest.approx(of["ours"].mean())
    assert whole.row.ci_low < of["ours"].mean() < whole.row.ci_high
    assert (whole.row.n_units, whole.row.ci_unit) == (7, "patient")
    assert whole.null_mean == pytest.approx(of["mean"].mean() + 9.5)
    folds = found["folds of per-patient", ""].entries["ours", "pearson"]
    even, odd = of["ours"][::2].mean(), of["ours"][1::2].mean()
    assert folds.row.value == pytest.approx((even + odd) / 2)
    assert folds.spread == pytest.approx(abs(even - odd) / 2)
    assert folds.text().endswith(f"± {number(abs(even - odd) / 2)}")


def test_undefined_values_and_a_single_patient_are_shown_as_they_are(tmp_path):
    gone = np.array([np.nan, 0.4, 0.5, 0.4, 0.6, 0.5, 0.3])
    of = values(7)
    made = [*rows("ours", of["ours"]), *rows("theirs", gone), *rows("third", np.full(7, np.nan))]
    made += rows("ours", of["ours"][:1], protocol=LABELS, task="linear-probe")
    made += rows("theirs", of["theirs"][:1], protocol=LABELS, task="linear-probe")
    read = study([Run.open(run(tmp_path / "r", made))])
    tested = {(c.paired.a, c.quantity.task): c.paired for c in read.tests}
    assert (tested["theirs", "expression"].n_patients, tested["theirs", "expression"].n_left_out) == (6, 1)
    assert tested["third", "expression"].n_patients == 0
    assert tested["theirs", "linear-probe"].n_patients == 1
    write_comparison(read, tmp_path)
    lines = cells((tmp_path / "comparison.html").read_text())
    assert ["third", "method", "1", "2.5", "undefined"] in lines
    assert ["theirs", "pearson", "undefined in 1 patient, who are left out"] in lines
    assert ["theirs", "pearson", "–", *(number(v) for v in gone[1:])] in lines
    assert "nan" not in (tmp_path / "comparison.csv").read_text().lower()
    assert "NaN" not in (tmp_path / "tests.csv").read_text()


def test_what_is_no_merit_is_shown_and_never_tested_nor_starred(tmp_path):
    made = [r for m in ("ours", "theirs") for r in (*rows(m, values(6)[m]), *rows(m, values(6)[m], metric="ties"))]
    read = study([Run.open(run(tmp_path / "r", made))])
    assert {c.quantity.metric for c in (*read.tests, *read.among)} == {"pearson"}
    assert values_table(read, grids(read)[0], folded=False).header[-2:] == ["pearson", "ties"]


@pytest.mark.parametrize("text", [None, '{"kind": "train"}', "[]"])
def test_a_folder_without_the_manifest_of_a_bench_run_is_refused_with_the_mend(tmp_path, text):
    folder = run(tmp_path / "r", rows("ours", values(6)["ours"]))
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(RecipeError, match="folders that `triglyph bench run` wrote"):
        Run.open(folder)


# ---- genes


def test_genes_of_two_runs_are_drawn_and_a_run_without_them_is_named(twelve, tmp_path):
    _, out = twelve
    page = (out / "comparison.html").read_text()
    assert "third left no values of single genes (genes.parquet)" in page
    assert "ours better for 0 of 2 genes" in page  # theirs is 0.1 above ours; the gene without a value is in neither
    alone = study([Run.open(run(tmp_path / "r", rows("ours", values(6)["ours"])))])
    write_comparison(alone, tmp_path)
    text = (tmp_path / "comparison.html").read_text()
    assert "r left no values of single genes" in text
    assert "<h2>Gene by gene</h2>" in text


def test_genes_under_other_constants_are_not_laid_on_each_other(tmp_path):
    of = values(6)
    first = run(tmp_path / "a", rows("ours", of["ours"]), genes=[gene_frame("ours", 0)])
    second = run(tmp_path / "b", rows("theirs", of["theirs"]), genes=[gene_frame("theirs", 0, "expression/1/cccccccc")])
    write_comparison(study([Run.open(first), Run.open(second)]), tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert "No gene is shared with ours under one protocol and split" in page


def test_genes_are_averaged_over_the_sections_that_both_models_have(tmp_path):
    of = values(6)
    theirs = [gene_frame("theirs", 0.1), gene_frame("theirs", -9.0, section="S2")]
    first = run(tmp_path / "a", rows("ours", of["ours"]), genes=[gene_frame("ours", 0)])
    second = run(tmp_path / "b", rows("theirs", of["theirs"]), genes=theirs)
    write_comparison(study([Run.open(first), Run.open(second)]), tmp_path)
    assert "theirs better for 2 of 2 genes" in (tmp_path / "comparison.html").read_text()


def test_rows_of_genes_serve_where_a_run_has_no_table_of_them(tmp_path):
    of = rows("ours", [0.1, 0.2], aggregation="per-gene")
    made = from_results([r.model_copy(update={"group": f"G{i}"}) for i, r in enumerate(of[:2])] + rows("ours", [0.3]))
    assert made.select("gene", "value").rows() == [("G0", 0.1), ("G1", 0.2)]
    assert from_results([]).is_empty()


def test_a_table_of_genes_comes_back_as_it_was_and_nonsense_is_refused(tmp_path):
    frame = gene_frame("ours", 0)
    write_genes([frame, gene_frame("theirs", 0.1)], tmp_path)
    back = read_genes(tmp_path)
    assert back is not None
    assert back.filter(pl.col("model") == "ours").equals(frame)
    assert back["value"].to_list()[:3] == [0.1, 0.5, None]
    write_genes([frame.with_columns(value=pl.lit(float("nan")))], tmp_path)
    assert read_genes(tmp_path)["value"].null_count() == 3
    assert read_genes(tmp_path / "none") is None
    with pytest.raises(ContractError, match="two values in one place"):
        write_genes([frame, frame], tmp_path)
    with pytest.raises(ContractError, match="infinite"):
        write_genes([gene_frame("ours", np.inf)], tmp_path)
    with pytest.raises(ContractError, match=r"not a table of genes: fold \(String\)"):
        write_genes([frame.drop("fold")], tmp_path)
    with pytest.raises(ContractError, match="2 values for 1 genes"):
        gene_values(["A"], [1, 2], task="", protocol="", split="", fold="", level="patient", model="", metric="")
    (tmp_path / "genes.parquet").write_bytes(b"no")
    with pytest.raises(StorageError, match="not readable"):
        read_genes(tmp_path)


def test_a_dot_on_the_line_is_better_for_neither():
    genes = figures.Genes(["a", "b", "c"], [0.1, 0.2, 0.3], [0.1, 0.3, 0.2])
    assert genes.better(lower_is_better=False) == genes.better(lower_is_better=True) == 1
    drawn = figures.gene_scatter({"$x": genes}, name="a_b", lower_is_better=False)
    assert drawn == figures.gene_scatter({"$x": genes}, name="a_b", lower_is_better=False)


def test_latex_has_a_table_per_family_with_booktabs(twelve):
    made, _ = twelve
    found = grids(made)
    text = latex(made, found)
    families = {Family.of(r) for r in made.holders}
    assert text.count(r"\begin{table}") == text.count(r"\bottomrule") == len(families) == 2
    assert r"mse $\downarrow$" in text
