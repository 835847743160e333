"""The audit that `bench run` makes of its split first: what fails is not run, unless allowed by name and stamped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triglyph.errors import RecipeError, SplitError

ALL_TESTED = "all tested"

if TYPE_CHECKING:
    from triglyph.bench.audit.findings import Audit
    from triglyph.metrics.result import Result
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.plain import PlainCohort
    from triglyph.tissue.split import Split


def audited(
    cohort: Cohort | PlainCohort,
    name: str,
    *,
    model: Path | None,
    embedding: str | None,
    prompts: Path | None,
    fold: str | None,
    allow: Sequence[str],
) -> tuple[Split, Audit]:
    """The split of that name and its audit, with what is judged.

    Parameters
    ----------
    embedding
        Fingerprint of stored features, or key of `obsm`, in which near duplicates are looked for.
    fold
        Only this fold is judged.
    allow
        Names of findings that may fail.

    Raises
    ------
    SplitError
        There is no such split, or a finding fails that was not allowed.
    RecipeError
        `allow` names no kind of finding.
    """
    from triglyph.apply.prompts import Prompts
    from triglyph.bench.audit.subject import SubjectInfo, declared
    from triglyph.bench.audit.whole import audit_split
    from triglyph.tissue.cohort import Cohort
    from triglyph.workflows.audit import about_encoder, about_run, stored_features

    _known(allow)
    subject: SubjectInfo | None = None
    split: Split = declared(cohort, name)
    if isinstance(cohort, Cohort):
        if model is not None:
            subject, embedding = about_run(cohort, model)
        elif embedding is not None:
            subject = about_encoder(stored_features(cohort, embedding)[1], None)
    if fold is not None:
        split.fold(fold)  # refused where there is none
        subject = (subject or SubjectInfo(name=name)).model_copy(update={"split": name, "folds": (fold,)})
    synonyms = {} if prompts is None else dict(Prompts.read(prompts).classes)
    return split, _passed(
        audit_split(cohort, split, subject_info=subject, synonyms=synonyms, embedding=embedding), allow
    )


def audited_whole(cohort: Cohort, *, model: Path | None, allow: Sequence[str]) -> tuple[Split, Audit]:
    """All sections of a cohort as tested, and the audit of it: nothing is trained here, so it is one of the model.

    Parameters
    ----------
    model
        A run folder; None where only what others have published is shown.
    allow
        Names of findings that may fail.

    Raises
    ------
    SplitError
        The model or its encoders have seen what is tested, and it was not allowed.
    RecipeError
        `allow` names no kind of finding.
    """
    from triglyph.bench.audit.whole import audit_split
    from triglyph.workflows.audit import about_run

    _known(allow)
    split = all_tested(cohort)
    subject = None if model is None else about_run(cohort, model)[0]
    return split, _passed(audit_split(cohort, split, subject_info=subject, tables=False), allow)


def _known(allow: Sequence[str]) -> None:
    from triglyph.bench.audit.kinds import KINDS

    if unknown := sorted(set(allow) - set(KINDS)):
        raise RecipeError(
            f"the audit has no finding {', '.join(unknown)}", where="--allow", mend=f"it has {', '.join(KINDS)}"
        )


def _passed(audit: Audit, allow: Sequence[str]) -> Audit:
    """The audit, unless something fails that was not allowed."""
    refused = audit.not_allowed(allow)
    if refused:
        first = refused[0]
        more = f" (and {len(refused) - 1} more: {', '.join(sorted({f.name for f in refused[1:]}))})"
        raise SplitError(
            f"the audit fails: {first.name}: {first.what}{more if len(refused) > 1 else ''}",
            where=first.where,
            mend=f"{first.mend}; or run it as it is with "
            + " ".join(f"--allow {n}" for n in dict.fromkeys(f.name for f in refused)),
        )
    return audit


def all_tested(cohort: Cohort) -> Split:
    """All sections of a cohort as the test side of a split that trains nothing."""
    from triglyph.bench.audit.subject import DeclaredSplit
    from triglyph.tissue.split import Fold

    # An ordinary split must train on something.
    return DeclaredSplit(name=ALL_TESTED, level="patient", folds=(Fold(train=(), test=tuple(cohort.ids)),))


def stamped(rows: Iterable[Result], audit: Audit) -> list[Result]:
    """Rows that say which failing findings were allowed; what others have published was not judged on this split."""
    notes = tuple(f"audit failed and was allowed: {name}" for name in dict.fromkeys(f.name for f in audit.failures))
    if not notes:
        return list(rows)
    return [
        row if row.source == "published" else row.model_copy(update={"transductive": (*row.transductive, *notes)})
        for row in rows
    ]
