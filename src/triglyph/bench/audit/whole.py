"""`audit_split`: every check in one pass, from the cheapest to the dearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triglyph.bench.audit.case import Case, CohortLike
from triglyph.bench.audit.copies import check_copies
from triglyph.bench.audit.findings import Audit, Sheet
from triglyph.bench.audit.fitted import check_subject
from triglyph.bench.audit.geometry import check_geometry
from triglyph.bench.audit.labels import check_captions, check_classes, check_probes
from triglyph.bench.audit.lookalikes import check_lookalikes
from triglyph.bench.audit.people import check_names, check_patients, check_people, check_spelling
from triglyph.bench.audit.subject import SubjectInfo
from triglyph.tissue.split import Split

_TABLES = (check_copies, check_captions, check_classes, check_probes, check_lookalikes)
_OF_TABLES = (
    "same-section-twice",
    "caption-names-label",
    "class-on-one-side",
    "position-tells-label",
    "depth-tells-label",
    "near-duplicates",
)


def audit_split(
    cohort: CohortLike,
    split: Split,
    *,
    subject_info: SubjectInfo | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    embedding: str | None = None,
    tile_um: float | None = None,
    tables: bool = True,
    seed: int = 0,
) -> Audit:
    """Audit a split of a cohort, and of the model or encoder that it is to judge.

    Reads no pixel. It raises nothing about what it audits: what another call would refuse is a finding here.

    Parameters
    ----------
    cohort
        A `tissue.Cohort`, or anything of the shape of `CohortLike`; what the latter lacks is reported as not checked.
    split
        Need not fit; `triglyph.bench.audit.subject.declared` reads a saved one without refusing it.
    subject_info
        What is judged: see `read_subject`. None audits the split alone.
    synonyms
        Class -> other words for it, for captions; the phrases of `zero-shot` prompts serve.
    embedding
        Fingerprint of stored features, or `obsm` key of a plain table, in which near duplicates are looked for beside
        expression.
    tile_um
        Side of the square of tissue that a model sees around a location, µm; the subject's own one if left out.
    tables
        Read counts, labels and captions. Without them the audit takes milliseconds, and says what it did not check.
    seed
        Of the locations drawn, and of the shifts of label maps.

    Returns
    -------
    Audit
        With `passed`, and beside it what could not be checked.
    """
    if tile_um is None and subject_info is not None:
        tile_um = subject_info.window_um
    case = Case(cohort, split, subject_info, dict(synonyms or {}), embedding, tile_um, seed)
    sheet = Sheet(split.name)
    check_names(case, sheet)
    check_people(case, sheet)
    check_patients(case, sheet)
    check_subject(case, sheet)
    check_geometry(case, sheet)
    if tables:
        for check in _TABLES:
            check(case, sheet)
    else:
        for name in _OF_TABLES:
            sheet.unchecked(name, "counts, labels and captions were not read")
    check_spelling(case, sheet)
    return sheet.audit(cohort=str(getattr(cohort, "name", "")), level=split.level)
