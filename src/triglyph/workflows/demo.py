"""`triglyph demo`: simulate, train, judge on held-out patients, report; two CPU cores and a few minutes.

    DIR/cohort/             six simulated patients, eight sections
    DIR/runs/aligned/       image, expression and text aligned; every tower from scratch
    DIR/runs/stain-texture/ the same with 52 hand-made image features instead of a network: the baseline
    DIR/bench/              what the judge found, one folder a run
    DIR/results.json        all rows together
    DIR/report.html         the report

Every step writes whole or not at all: an interrupted demo goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triglyph.metrics.result import Result
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import Split

SPLIT = "patients"
QUERIES = ("lymphoid aggregate with crowded cells", "mature adipose tissue", "invasive carcinoma, densely cellular")
BASELINE = "stain-texture, aligned"


def demo(*, out: Path = Path("triglyph-demo"), patients: int = 6, test_patients: int = 2, seed: int = 0) -> Path:
    """Simulate tissue, train on it, judge on patients held out, and write a report with pictures.

    Parameters
    ----------
    out
        Folder; run again with the same one to go on after an interruption.
    patients
        Simulated patients.
    test_patients
        How many of them are held out.
    seed
        Of tissue, split and training.

    Returns
    -------
    Path
        The report.
    """
    from rich.console import Console

    from triglyph.metrics.result import write_results
    from triglyph.tissue.cohort import Cohort
    from triglyph.workflows.simulate import simulate
    from triglyph.workflows.train import train

    out = Path(out)
    console = Console(stderr=True)
    console.rule("1/4  simulating tissue", align="left")
    simulate("demo", patients=patients, out=out / "cohort", seed=seed)
    cohort = Cohort.open(out / "cohort")
    split = _split(cohort, test_patients, seed)

    console.rule("2/4  training", align="left")
    runs = {"aligned": out / "runs" / "aligned", "stain-texture": out / "runs" / "stain-texture"}
    train("demo", cohort=cohort.path, out=runs["aligned"], set=[f"seed={seed}"])
    train("demo-stain-texture", cohort=cohort.path, out=runs["stain-texture"], set=[f"seed={seed}"])

    console.rule("3/4  judging on held-out patients", align="left")
    results = _judge(cohort, runs, out / "bench", seed)
    write_results(results, out)

    console.rule("4/4  reporting", align="left")
    report = _report(cohort, split, runs["aligned"], results, out / "report.html")
    console.print(f"\nThe report is [bold]{report.resolve()}[/]")
    return report


def _split(cohort: Cohort, test_patients: int, seed: int) -> Split:
    from triglyph.tissue.split import holdout

    if SPLIT not in cohort.splits:
        cohort.save_split(holdout(cohort.patients, name=SPLIT, test_patients=test_patients, seed=seed))
    return cohort.split(SPLIT)


def _judge(cohort: Cohort, runs: dict[str, Path], folder: Path, seed: int) -> list[Result]:
    """Rows of the method with its baselines and null, then those of the aligned baseline."""
    from triglyph.metrics.result import read_results
    from triglyph.storage import write_json
    from triglyph.tissue.simulate.language import CLASS_PROMPTS
    from triglyph.workflows.bench_run import bench_run

    prompts = folder.parent / "prompts.json"
    write_json(prompts, {"classes": CLASS_PROMPTS})
    results: list[Result] = []
    for name, run in runs.items():
        method = name == "aligned"
        if not (folder / name).exists():
            bench_run(
                "all",
                cohort=cohort.path,
                model=run,
                out=folder / name,
                prompts=prompts,
                null=20 if method else 0,
                baselines=method,
                seed=seed,
                quiet=True,
            )
        rows = read_results(folder / name)
        results += rows if method else [r.model_copy(update={"role": "baseline", "model": BASELINE}) for r in rows]
    return results


def _report(cohort: Cohort, split: Split, run: Path, results: list[Result], path: Path) -> Path:
    from triglyph.apply.trained import TrainedModel
    from triglyph.report.run_report import write_report
    from triglyph.tissue.simulate.language import CLASS_PROMPTS

    fold = split.fold()
    people = {cohort.patients[s] for s in fold.test}
    sections = [cohort[s] for s in fold.test]
    # The section with the most classes makes the most telling map.
    sections.sort(key=lambda s: (-len(set(s.labels)), s.id))
    return write_report(
        path,
        title="Triglyph on simulated tissue",
        lead=(
            f"Image, gene expression and captions of {len(fold.train)} simulated sections were aligned in one space; "
            f"everything below is measured on {len(sections)} sections of {len(people)} patients who were held out."
        ),
        model=TrainedModel.open(run),
        sections=sections,
        results=results,
        log=run / "log.jsonl",
        prompts=CLASS_PROMPTS,
        queries=QUERIES,
    )
