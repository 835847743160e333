"""`triglyph bench list | show | compare`: protocols, and runs side by side. `bench run` is `bench_run.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triglyph.errors import RecipeError

if TYPE_CHECKING:
    from triglyph.bench.table import Table

SHOWN = ("patients of all folds", "per-section", "patient-pooled", "macro", "pooled", "per-fold")
"""Aggregations that are printed; `table.md` has all."""


def bench_list() -> None:
    """Print the protocols and what each asks."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from triglyph.bench.registry import PROTOCOLS

    table = RichTable("protocol", "version", "digest", "what it asks")
    for name, cls in PROTOCOLS.items():
        card = cls().card()
        table.add_row(name, card.version, card.digest()[:8], card.summary)
    Console().print(table)


def bench_show(name: str, *, set: list[str] | None = None) -> None:
    """Print the card of a protocol: what is fitted where, what sees the test set, every constant; and its baselines.

    Parameters
    ----------
    name
        As in `triglyph bench list`.
    set
        Change a constant: `--set n_genes=250`. May be given several times.
    """
    import yaml
    from rich.console import Console

    from triglyph.bench.registry import parse_options, protocol
    from triglyph.bench.standing import standing

    chosen = protocol(name, parse_options(set or []))
    card = chosen.card()
    shown = {k: v for k, v in card.model_dump(mode="json").items() if v not in ("", None)}
    beside = {k: list(names) for k, names in standing(chosen).items()}
    told = {**shown, "digest": card.digest(), "beside it": beside}
    text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def bench_compare(runs: Sequence[Path], *, out: Path | None = None, reference: str | None = None) -> Path:
    """Put the results of several runs side by side: on the screen, as a report in HTML, as CSV, LaTeX and Markdown.

    Parameters
    ----------
    runs
        Folders that `triglyph bench run` wrote.
    out
        Folder for `comparison.html`, `comparison.csv`, `tests.csv`, `patients.csv`, `comparison.tex` and
        `comparison.md`; must not exist. `comparison` in the working directory if left out.
    reference
        The model that every other one is compared with; the first run's method if left out.

    Returns
    -------
    Path
        The folder written.

    Raises
    ------
    RecipeError
        No run was given, two folders have one name, a folder is no run, or no model is called `reference`.
    """
    from triglyph.bench.table import markdown, merge, tabulate
    from triglyph.report.comparison import write_comparison
    from triglyph.report.comparison_study import Run, study
    from triglyph.storage import atomic_folder

    paths = [Path(run) for run in runs]
    if not paths:
        raise RecipeError("no run to compare", where="bench compare", mend="give one or more run folders")
    if len({p.resolve().name for p in paths}) < len(paths):
        raise RecipeError("two runs have the same folder name", where="bench compare", mend="rename one of them")
    opened = [Run.open(p) for p in paths]
    compared = study(opened, reference=reference)
    tables = tabulate(merge({run.name: run.rows for run in opened}))
    target = Path("comparison") if out is None else Path(out)
    with atomic_folder(target) as partial:
        write_comparison(compared, partial)
        (partial / "comparison.md").write_text(markdown(tables), encoding="utf-8")
    print_tables(tables)
    return target


def print_tables(tables: Sequence[Table]) -> None:
    """A heading per quantity, a line per model: fits a terminal. `table.md` has them side by side, and each patient."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    from triglyph.bench.across_folds import FOLDS
    from triglyph.bench.table import show
    from triglyph.metrics.merit import is_merit

    console = Console()
    for table in tables:
        console.rule(f"[bold]{escape(table.task)}", align="left")
        over_folds = any(line.row.aggregation.startswith(FOLDS) for line in table.lines)
        several = len({line.row.protocol for line in table.lines}) > 1
        for line in table.lines:
            kept = line.row.group == "all" and line.row.aggregation.removeprefix(f"{FOLDS} of ") in SHOWN
            # Of several folds the means are printed; `table.md` has every fold.
            if not kept or not is_merit(line.row.metric) or (over_folds and line.row.fold):
                continue
            if several:
                console.print(line.row.protocol, style="dim", markup=False, highlight=False)
            direction, metric, over, where, chance = table.cells(line)[:5]
            console.print(f"[bold]{escape(direction)}  {escape(metric)}[/]  {over}, {where}, chance {chance}")
            shown = RichTable.grid(padding=(0, 2, 0, 2))
            shown.add_column(no_wrap=True)
            shown.add_column(no_wrap=True)
            for model, row in line.values.items():
                shown.add_row(escape(model), escape(show(row) + ("*" if line.starred(model) else "")))
            console.print(shown)
        for note in table.notes():
            console.print(f"  {note}", markup=False, highlight=False)


def print_left_out(notes: Sequence[str]) -> None:
    """What was not judged, and why."""
    from rich.console import Console

    console = Console()
    if notes:
        console.rule("[bold]left out", align="left")
    for note in notes:
        console.print(f"  {note}", markup=False, highlight=False)
