"""Who is on which side: sections, patients, donors, blocks and slides, from the manifest alone; reads no table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from triglyph.bench.audit.case import Case, Sides, plain
from triglyph.bench.audit.findings import Sheet, listed
from triglyph.metrics.bootstrap import MIN_PATIENTS


def check_names(case: Case, sheet: Sheet) -> None:
    """`unknown-section`: of the split's folds, and of what an encoder's training left out."""
    sheet.checked("unknown-section")
    for sides in case.sides:
        fold = sides.fold
        named = dict.fromkeys((*fold.train, *fold.val, *fold.test, *(fold.test_locations or {})))
        if unknown := [s for s in named if s not in case.patients]:
            what = _unknown("the split", unknown, case.patients)
            message = "the split names sections that the cohort has not"
            sheet.find("unknown-section", what, message=message, sections=unknown, fold=sides.name)
        for section, barcodes in fold.withheld.items():
            if section not in case.patients:
                continue
            there = {str(b) for b in case.cohort[section].table.obs_names}
            if gone := [b for b in barcodes if b not in there]:
                what = f"{len(gone)} held-out locations that section {section} has not: {listed(gone)}"
                message = "the split holds out locations that their sections have not"
                sheet.find("unknown-section", what, message=message, sections=(section,), fold=sides.name)
    for encoder in () if case.subject is None else case.subject.encoders:
        if unknown := [s for s in encoder.all_but or () if s not in case.patients]:
            what = _unknown(f"the list of what {encoder.encoder} held out", unknown, case.patients)
            sheet.find("unknown-section", what)


def check_people(case: Case, sheet: Sheet) -> None:
    """Sections, patients, donors, blocks and slides on both sides, as far as the split's level speaks of them."""
    level = case.split.level
    sheet.checked("section-on-both-sides")
    if level != "within-section":
        for sides in case.sides:
            if both := sorted(set(sides.fold.test) & {*sides.fold.train, *sides.fold.val}):
                of_spots = " (a division of spots, not of sections)" if sides.fold.test_locations else ""
                said = f"trained on and tested at level {level!r}{of_spots}"
                what, message = f"{_count(both, 'section')} {said}: {listed(both)}", f"sections {said}"
                sheet.find("section-on-both-sides", what, message=message, sections=both, fold=sides.name)
    else:
        for sides in case.sides:
            fold = sides.fold
            trained = {*fold.train, *fold.val}
            if whole := [s for s in fold.test if s in trained and s not in (fold.test_locations or {})]:
                said = "all locations are trained on, and tested"
                what, message = f"no `test_locations` of {listed(whole)}: {said}", f"no `test_locations`: {said}"
                sheet.find("section-on-both-sides", what, message=message, sections=whole, fold=sides.name)
    if level != "patient":
        same = {"within-patient": "patients", "within-section": "sections"}[level]
        sheet.notes.append(
            f"declared {level}: the {same} tested may be those trained on; every row is stamped {level}, and shows "
            "nothing about patients never seen"
        )
        return
    sheet.checked("patient-on-both-sides")
    for sides in case.sides:
        crossing = _both_sides(sides, case.patients)
        if crossing:
            sheet.find(
                "patient-on-both-sides",
                _crossing("patient", crossing),
                message="patients on both sides",
                sections=_tested(crossing),
                fold=sides.name,
            )
        tested = {case.patients[s] for s in sides.test}
        if case.subject is not None and (known := sorted(tested & set(case.subject.training_patients) - set(crossing))):
            what = f"{case.subject.name} was trained on {_count(known, 'patient')} tested here: {listed(known)}"
            message = f"{case.subject.name} was trained on patients tested here"
            of_known = [s for s in sides.test if case.patients[s] in known]
            sheet.find("patient-on-both-sides", what, message=message, sections=of_known, fold=sides.name)
    for column in ("donor", "slide", "block"):
        _check_column(case, sheet, column)


def check_patients(case: Case, sheet: Sheet) -> None:
    """`patients-unknown` and `few-patients`."""
    sheet.checked("few-patients")
    tested = sorted({case.patients[s] for sides in case.sides for s in sides.test})
    if len(tested) < MIN_PATIENTS:
        sheet.find("few-patients", f"{_count(tested, 'patient')} tested in all folds together: {listed(tested)}")
    if any(plain(p) != plain(s) for s, p in case.patients.items()):
        sheet.checked("patients-unknown")
        return
    repeating = []
    for column in ("donor", "block", "slide"):
        values = list((case.column(column) or {}).values())
        if len(set(values)) < len(values):
            repeating.append(f"{len(values)} sections have {len(set(values))} {column}s")
    if repeating:
        what = f"every patient id is its section's name, but {'; '.join(repeating)}"
        sheet.find("patients-unknown", what)
    else:
        sheet.unchecked("patients-unknown", "patients are named as their sections; nothing else says who they are")


def check_spelling(case: Case, sheet: Sheet) -> None:
    """`patient-spelt-twice`; after the checks that find copies, since those decide its severity."""
    if case.split.level != "patient":
        return
    sheet.checked("patient-spelt-twice")
    donors = case.column("donor") or {}
    for sides in case.sides:
        pairs: dict[tuple[str, str], bool] = {}
        for a, b in sides.pairs():
            p, q = case.patients[a], case.patients[b]
            told_apart = a in donors and b in donors and plain(donors[a]) != plain(donors[b])
            if p != q and plain(p) == plain(q) and not told_apart:
                agree = (a, b) in case.copies or (b, a) in case.copies
                pairs[p, q] = pairs.get((p, q), False) or agree
        for (p, q), agree in pairs.items():
            also = ", and their sections look like one person's" if agree else ""
            what = f"patients {p!r} (trained on) and {q!r} (tested) are spelt almost alike{also}"
            sheet.find("patient-spelt-twice", what, fold=sides.name, severity="fail" if agree else "advise")


def _check_column(case: Case, sheet: Sheet, column: str) -> None:
    name = f"{column}-on-both-sides"
    values = case.column(column)
    if values is None:
        sheet.unchecked(name, f"the manifest says nothing in a column {column!r}")
        return
    if silent := [s for s in case.sections if s not in values]:
        sheet.unchecked(name, f"column {column!r} is blank for {listed(silent)}")
    people: dict[str, set[str]] = {}
    for section, value in values.items():
        people.setdefault(value, set()).add(case.patients[section])
    if column == "block":
        # `1`, `2`, `3` in every patient are numbers, not names.
        shared = [v for v, of in people.items() if len(of) > 1]
        if len(people) > 1 and len(shared) > len(people) / 2:
            sheet.unchecked(name, f"most blocks are of several patients ({listed(shared)}): numbered, not named")
            return
    sheet.checked(name)
    for sides in case.sides:
        both = _both_sides(sides, values)
        # Where the patient is the same, the patient's own finding says it.
        both = {
            value: (seen, test)
            for value, (seen, test) in both.items()
            if {case.patients[s] for s in seen} != {case.patients[s] for s in test}
        }
        if both:
            what, message = _crossing(column, both), f"{column}s on both sides"
            sheet.find(name, what, message=message, sections=_tested(both), fold=sides.name)


def _both_sides(sides: Sides, values: Mapping[str, str]) -> dict[str, tuple[list[str], list[str]]]:
    """Value -> (sections seen, sections tested), of the values that different sections of both sides have."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for a, b in sides.pairs():
        if a in values and values.get(b) == values[a]:
            seen, test = found.setdefault(values[a], ([], []))
            if a not in seen:
                seen.append(a)
            if b not in test:
                test.append(b)
    return found


def _crossing(noun: str, both: Mapping[str, tuple[list[str], list[str]]]) -> str:
    parts = [f"{v} (trained on {listed(a, most=3)}; tested {listed(b, most=3)})" for v, (a, b) in both.items()]
    return f"{_count(list(both), noun)} on both sides: {listed(parts)}"


def _tested(both: Mapping[str, tuple[list[str], list[str]]]) -> list[str]:
    return list(dict.fromkeys(s for _, tested in both.values() for s in tested))


def _count(things: Iterable[object], noun: str) -> str:
    n = len(list(things))
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _unknown(whose: str, unknown: list[str], known: Mapping[str, str]) -> str:
    hints = []
    for name in unknown:
        fused = [f"{name[:i]} and {name[i:]}" for i in range(1, len(name)) if name[:i] in known and name[i:] in known]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        hints.append(
            f"{name} (reads like {fused[0]} fused: a missing comma?)"
            if fused
            else f"{name} (did you mean {near[0]}?)"
            if near
            else name
        )
    return f"{whose} names {_count(unknown, 'section')} that the cohort has not: {listed(hints)}"
