"""What the experiments share: rows that are made once and read ever after, as long as the same is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from triglyph.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from triglyph.bench.contracts import Subject, Trial
    from triglyph.bench.protocol import Protocol
    from triglyph.metrics.result import Result

ASKED = "asked.json"


def judged(
    folder: Path,
    trial: Trial,
    asked: Mapping[str, Iterable[Protocol]],
    opened: Callable[[], Mapping[str, Subject]],
    *,
    seed: int | None = None,
) -> list[Result]:
    """The rows in a folder; made first where they are not there, whole or not at all.

    What was asked for lies beside them: protocols with their constants, the seed, the fold and its sections.

    Parameters
    ----------
    asked
        Name of a subject -> what it is judged by.
    opened
        Gives those subjects; called only where the rows are not there.
    seed
        Of the subjects' training.

    Raises
    ------
    ContractError
        The rows answer another question.
    """
    from triglyph.metrics.result import read_results, write_results
    from triglyph.storage import atomic_folder, read_json, write_json

    protocols = {name: list(several) for name, several in asked.items()}
    question = _question(trial, protocols, seed)
    if folder.exists():
        there = read_json(folder / ASKED) if (folder / ASKED).is_file() else {}
        if other := [key for key in sorted({*there, *question}) if there.get(key) != question.get(key)]:
            raise ContractError(
                f"the rows are there, but something else was asked for: {_differences(there, question, other)}",
                where=folder,
                mend="give another --out, or remove this folder to judge anew",
            )
        return read_results(folder)
    subjects = opened()
    found = [row for name, several in protocols.items() for p in several for row in p.run(subjects[name], trial)]
    with atomic_folder(folder) as partial:
        write_results(found, partial)
        write_json(partial / ASKED, question)
    return read_results(folder)


def _question(trial: Trial, asked: Mapping[str, list[Protocol]], seed: int | None) -> dict[str, Any]:
    """All that decides the rows but the weights, which belong to the run beside them."""
    from triglyph.bench.parts import whole_of

    wholes = {s.id: (whole_of(s).info, s.patient) for s in (*trial.train, *trial.test)}
    return {
        "seed": seed,
        "split": trial.identity,
        **{f"{name}, judged by": [p.stamp for p in several] for name, several in asked.items()},
        **{
            f"section {s}": [about.table, about.locations, patient, *(i.sha256 for i in about.images)]
            for s, (about, patient) in wholes.items()
        },
    }


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], other: list[str]) -> str:
    if not there:
        return "they do not say what they were made of"
    told = [f"{key} ({there.get(key, 'nothing')} there, {now.get(key, 'nothing')} now)" for key in other[:4]]
    return "; ".join(told) + (f"; and {len(other) - 4} more" if len(other) > 4 else "")
