"""The report of `triglyph bench compare`: one HTML file that needs nothing else, CSV tables, LaTeX tables.

The study decides (`comparison_study`), the other parts only show it. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from triglyph.bench.across_folds import FOLDS
from triglyph.bench.comparison import Comparison
from triglyph.metrics.bootstrap import MIN_PATIENTS
from triglyph.metrics.merit import lower_is_better
from triglyph.metrics.per_gene import KEY
from triglyph.report import comparison_csv as csv
from triglyph.report import comparison_figures as figures
from triglyph.report import comparison_tables as tables
from triglyph.report.comparison_grids import Family, Grid, grids, headline, titles
from triglyph.report.comparison_latex import latex
from triglyph.report.comparison_study import Study
from triglyph.report.html import Part, Picture, Table, write_html

_PLACE = ("task", "protocol", "split", "level", "metric")


def write_comparison(study: Study, folder: Path) -> Path:
    """Write `comparison.html`, `comparison.csv`, `tests.csv`, `patients.csv` and `comparison.tex` into a folder.

    Returns
    -------
    Path
        The HTML file.
    """
    found = grids(study)
    families = list(dict.fromkeys(g.family for g in found))
    heads = [headline([g for g in found if g.family == family]) for family in families]
    csv.values_frame(study, found).write_csv(folder / "comparison.csv")
    csv.tests_frame(study).write_csv(folder / "tests.csv")
    csv.patients_frame(study).write_csv(folder / "patients.csv")
    (folder / "comparison.tex").write_text(latex(study, heads), encoding="utf-8")
    methods = [model for model, role in study.models.items() if role == "method"]
    told = [c for c in study.tests if c.paired.verdict in ("better", "worse")]
    patients = {who for q in study.quantities for of in study.patients(q).values() for who in of}
    return write_html(
        folder / "comparison.html",
        title=f"{', '.join(methods[:4])}{' and others' if len(methods) > 4 else ''} compared",
        lead=f"{_many(len(study.runs), 'run')}, every model against {study.reference}, patient by patient.",
        facts=[
            (str(len(study.runs)), "runs"),
            (str(len(patients)), "held-out patients"),
            (str(len(methods)), "methods"),
            (f"{len(told)} of {len(study.tests)}", "comparisons told apart"),
            (str(len(study.apart)), "entries under Not comparable"),
        ],
        parts=[
            _verdicts(study),
            _apart(study),
            *(_family(study, [g for g in found if g.family == f], title) for f, title in titles(families).items()),
            _genes(study),
            _stamps(study),
        ],
    )


def _verdicts(study: Study) -> Part:
    text = (
        "“Cannot be told apart” is no proof of equality: these patients are too few, or differ too much, to say which "
        "is better."
    )
    few = any(c.paired.n_patients < MIN_PATIENTS for c in study.tests)
    if few:
        text += (
            f" Below {MIN_PATIENTS} patients no significance is claimed, whatever the numbers: each patient's value is "
            "printed, with the number of patients in whom a model is better."
        )
    if not study.tests:
        return Part("Verdicts", f"No model has a quantity in common with {study.reference}.")
    return Part("Verdicts", text, [tables.verdicts_table(study)])


def _apart(study: Study) -> Part:
    if not study.apart:
        return Part("Not comparable", "Nothing: all runs share their protocols' constants, splits and galleries.")
    text = (
        "Left out of every test, unless it says otherwise: the numbers do not measure the same thing. Their values are "
        "in the tables."
    )
    return Part("Not comparable", text, [tables.apart_table(study)])


def _family(study: Study, of: Sequence[Grid], title: str) -> Part:
    """One family: its values, its tests, its patients."""
    family = of[0].family
    head = headline(of)
    tests = [c for c in study.tests if Family.of(c.quantity) == family]
    quantities = [q for q in study.quantities if Family.of(q) == family]
    patients = {q: study.patients(q) for q in quantities}
    n = len({who for models in patients.values() for values in models.values() for who in values})
    content: list[Picture | Table] = [tables.values_table(study, head, folded=False)]
    # A metric that is undefined in the reference has nothing to draw.
    seen = [c for c in tests if any(o.paired.n_patients for o in tests if o.quantity == c.quantity)]
    if seen:
        content.append(
            Picture(
                figures.forest(seen, [_differences(c, patients[c.quantity]) for c in seen]),
                _forest_caption(study, seen),
                figures.forest_words(seen),
            )
        )
    if tests:
        content.append(tables.tests_table(tests))
        content += _notes(tests)
    if quantities:
        drawn = {
            q.metric: {m: values for m, values in patients[q].items() if study.models[m] in ("method", "baseline")}
            for q in quantities
        }
        content.append(
            Picture(
                figures.patient_lines(drawn),
                f"Each line is one of {_many(n, 'patient')}; the bar is their mean.",
                f"Lines of {_many(n, 'patient')} across models; the values are in the table of patients.",
            )
        )
        content.append(tables.patients_table(study, quantities, folded=n >= MIN_PATIENTS))
    whole = {g.aggregation for g in of}
    for grid in of:
        # Single folds are in the CSV; here their mean stands for them.
        if grid is not head and not (grid.fold and f"{FOLDS} of {grid.aggregation}" in whole):
            content.append(tables.values_table(study, grid, folded=True))
    text = f"Protocol {family.protocol}, split {family.split}, level {family.level}."
    if family.level != "patient":
        text += " This level supports no claim about unseen patients."
    if not tests:
        text += f" {study.reference} has nothing to compare here."
    return Part(title[0].upper() + title[1:], text, content)


def _forest_caption(study: Study, tests: Sequence[Comparison]) -> str:
    said = [f"Mean difference to {study.reference}, patient by patient"]
    if any(c.paired.ci for c in tests):
        said.append("with its 95 % interval over patients")
    if any(not c.paired.ci for c in tests):
        said.append("ticks are single patients, too few for a claim")
    return "; ".join(said) + ". At the right: in how many patients the model is better. Grey claims no difference."


def _differences(c: Comparison, models: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    a, b = models[c.paired.a], models[c.paired.b]
    return {who: a[who] - b[who] for who in a if who in b}


def _notes(tests: Sequence[Comparison]) -> list[Table]:
    """What a reader must know of single tests."""
    found: dict[tuple[str, str], list[str]] = {}
    for c in tests:
        for note in c.notes:
            found.setdefault((c.paired.a, note.removeprefix(f"{c.paired.a}: ")), []).append(c.quantity.metric)
        if c.paired.n_left_out:
            note = f"undefined in {_many(c.paired.n_left_out, 'patient')}, who are left out"
            found.setdefault((c.paired.a, note), []).append(c.quantity.metric)
    rows = [[model, ", ".join(metrics), note] for (model, note), metrics in found.items()]
    return [Table(["model", "metrics", "note"], rows, wrap=True)] if rows else []


def _genes(study: Study) -> Part:
    """Each gene of the reference and of the others."""
    title = "Gene by gene"
    without = [run.name for run in study.runs if run.genes.is_empty()]
    said = f"{', '.join(without)} left no values of single genes (genes.parquet). " if without else ""
    table = _named_genes(study)
    content: list[Picture | Table] = []
    for place, of in table.group_by(_PLACE, maintain_order=True):
        named = dict(zip(_PLACE, map(str, place), strict=True))
        content += _scatter(study, named, of)
    if not content:
        reason = said or f"No gene is shared with {study.reference} under one protocol and split."
        return Part(title, reason.strip())
    text = (
        f"{said}Each dot is a gene, its value averaged over the sections and folds that both models have. Genes share "
        "tissue and patients and are no replicates: nothing is tested here."
    )
    return Part(title, text, content)


def _named_genes(study: Study) -> pl.DataFrame:
    """Values of single genes of all runs, models named as in the study."""
    frames = []
    for run in study.runs:
        # A model that differs between runs is `model @ run` in the study.
        here = {name: f"{name} @ {run.name}" for name in run.genes["model"].unique() if name not in study.models}
        frames.append(run.genes.with_columns(pl.col("model").replace(here)))
    return pl.concat(frames).unique(subset=list(KEY), keep="first", maintain_order=True)


def _scatter(study: Study, place: Mapping[str, str], of: pl.DataFrame) -> list[Picture]:
    """One figure of all models that share genes with the reference."""
    reference = of.filter(pl.col("model") == study.reference).drop_nulls("value")
    panels: dict[str, figures.Genes] = {}
    for model, role in study.models.items():
        if model == study.reference or role not in ("method", "baseline"):
            continue
        theirs = of.filter(pl.col("model") == model).drop_nulls("value")
        both = reference.join(theirs, on=["fold", "section", "patient", "gene"], how="inner", suffix="_other")
        if not both.is_empty():
            mean = both.group_by("gene").agg(pl.col("value").mean(), pl.col("value_other").mean()).sort("gene")
            panels[model] = figures.Genes(*(mean[c].to_list() for c in ("gene", "value", "value_other")))
    if not panels:
        return []
    lower = lower_is_better(place["metric"])
    words = "; ".join(
        f"{model} better for {genes.better(lower_is_better=lower)} of {len(genes.names)} genes"
        for model, genes in panels.items()
    )
    where = f"{place['task']}, {place['metric']}, protocol {place['protocol']}, split {place['split']}"
    return [
        Picture(
            figures.gene_scatter(panels, name=study.reference, lower_is_better=lower),
            f"{where}, level {place['level']}. {words}. On the line both are equal; the genes furthest from it are "
            "named.",
            f"Scatter of genes. {words}.",
        )
    ]


def _stamps(study: Study) -> Part:
    return Part(
        "Stamps",
        "What every number above rests on: what it cost, how often was tried, under which constants, and what saw the "
        "test set.",
        [tables.runs_table(study), tables.protocols_table(study), tables.stamps_table(study)],
    )


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
