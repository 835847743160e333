"""The tables of a comparison as LaTeX: one `table` per family, rules by booktabs, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence

from triglyph.metrics.merit import lower_is_better
from triglyph.report.comparison_grids import NONE, Entry, Grid, number
from triglyph.report.comparison_study import Study

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "→": r"$\rightarrow$", "↓": r"$\downarrow$", "±": r"$\pm$",
    "†": r"\dag{}", "‡": r"\ddag{}", "–": "--",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is; white space of any kind is one blank."""
    return "".join(_ESCAPES.get(letter, letter) for letter in " ".join(text.split()))


def latex(study: Study, grids: Sequence[Grid]) -> str:
    r"""The document's tables, to be `\input`; the preamble needs booktabs, and fontenc with T1."""
    head = "% \\usepackage[T1]{fontenc} \\usepackage{booktabs}\n"
    return head + "\n".join(_table(study, grid, i) for i, grid in enumerate(grids, start=1))


def _table(study: Study, grid: Grid, i: int) -> str:
    metrics = grid.metrics
    head = [escaped(m) + (r" $\downarrow$" if lower_is_better(m) else "") for m in metrics]
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\small",
        rf"\caption{{{_caption(study, grid)}}}",
        rf"\label{{tab:comparison-{i}}}",
        rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}",
        r"\toprule",
        " & ".join(["model", *head]) + r" \\",
        r"\midrule",
    ]
    role = None
    for model in grid.models(study):
        if role is not None and study.models[model] != role:
            lines.append(r"\addlinespace")
        role = study.models[model]
        cells = [_cell(grid.entries.get((model, m)), best=(model, m) in grid.best) for m in metrics]
        lines.append(" & ".join([escaped(model), *cells]) + r" \\")
    nulls = grid.nulls()
    if nulls:
        lines.append(r"\addlinespace")
    for run, by_metric in nulls.items():
        cells = [_number(by_metric[m][1]) if m in by_metric else "--" for m in metrics]
        lines.append(" & ".join([escaped(f"null, 95th percentile ({run})"), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _cell(entry: Entry | None, *, best: bool) -> str:
    if entry is None:
        return "--"
    r = entry.row
    if r.value is None:
        return "undefined"
    text = rf"\textbf{{{_number(r.value)}}}" if best else _number(r.value)
    text += (r"\textsuperscript{*}" if entry.beats_null else "") + (r"\dag{}" if r.transductive else "")
    text += r"\ddag{}" if entry.allowed else ""
    if r.ci_low is not None and r.ci_high is not None:
        text += rf" {{\scriptsize [{_number(r.ci_low)}, {_number(r.ci_high)}]}}"
    elif entry.spread is not None:
        text += rf" {{\scriptsize $\pm$ {_number(entry.spread)}}}"
    return text


def _number(value: float | None) -> str:
    return number(value).replace("-", "$-$").replace(NONE, "--")


def _caption(study: Study, grid: Grid) -> str:
    f = grid.family
    units = sorted({f"{e.row.n_units} {e.row.ci_unit}s" for e in grid.entries.values() if e.row.ci_unit})
    said = [
        f"{f.words()}: {grid.aggregation}" + (f", fold {grid.fold}" if grid.fold else ""),
        f"protocol {f.protocol}, split {f.split}, level {f.level}",
        f"reference {study.reference}",
    ]
    if units:
        said.append(f"brackets: 95 % intervals over {', '.join(units)}")
    if any(e.beats_null for e in grid.entries.values()):
        said.append("* better than the 95th percentile of its null")
    said += [
        f"† {model}: {'; '.join(notes)}"
        for model, notes in {m: e.row.transductive for (m, _), e in grid.entries.items() if e.row.transductive}.items()
    ]
    for model, e in {m: e for (m, _), e in grid.entries.items() if e.allowed}.items():
        said.append(f"‡ {model}: allowed in spite of the audit: {', '.join(e.runs[0].allowed)}")
    if grid.best:
        said.append("bold: better than every other method, sign flips over patients with Holm's correction")
    return escaped(". ".join(part[0].upper() + part[1:] for part in said) + ".")
