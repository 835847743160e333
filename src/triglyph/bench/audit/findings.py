"""What an audit says: findings, what was checked, and what could not be. Unmeasured is not a pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from triglyph.bench.audit.kinds import KINDS, Severity
from triglyph.cards import Frozen
from triglyph.metrics.result import Level


class Finding(Frozen):
    """One thing that is wrong."""

    name: str
    """A key of `KINDS`; `bench run --allow NAME` takes it."""
    severity: Severity
    what: str
    """A sentence with the ids."""
    message: str = ""
    """What of `what` is said of other sections or folds, too; "" where it is said once."""
    sections: tuple[str, ...] = ()
    """That `message` is said of."""
    folds: tuple[str, ...] = ()
    """None where the split has one fold."""
    where: str
    """Split and folds."""
    inflates: str
    mend: str


class Unchecked(Frozen):
    """A check that could not be made."""

    name: str
    why: str


class Audit(Frozen):
    """The audit of one split."""

    cohort: str
    split: str
    level: Level
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """Names of the checks that were made, of `KINDS`."""
    unchecked: tuple[Unchecked, ...]
    notes: tuple[str, ...] = ()
    """What is as declared, and must be said beside every number."""

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail."""
        return tuple(f for f in self.findings if f.severity == "fail")

    @property
    def passed(self) -> bool:
        """Whether nothing fails; what was not checked is in `unchecked`."""
        return not self.failures

    def named(self, name: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(f for f in self.findings if f.name == name)

    def not_allowed(self, allowed: Iterable[str]) -> tuple[Finding, ...]:
        """The failures whose names are not among `allowed`."""
        kept = set(allowed)
        return tuple(f for f in self.failures if f.name not in kept)


class Gathered(Frozen):
    """Findings that say the same of several sections or folds."""

    name: str
    severity: Severity
    what: str
    """The sentence where there is one place; else what is said of all of them, their number, and one of them."""
    sections: tuple[str, ...]
    folds: tuple[str, ...]
    inflates: str
    mend: str


def gathered(findings: Iterable[Finding]) -> tuple[Gathered, ...]:
    """Findings as a person reads them: one for each message, in the order given."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.name, f.severity, f.message or f.what), []).append(f)
    out = []
    for (name, _, message), same in groups.items():
        first = same[0]
        out.append(
            Gathered(
                name=name,
                severity=first.severity,
                what=first.what if len(same) == 1 else f"{message}, {len(same)} times; such as: {first.what}",
                sections=tuple(dict.fromkeys(s for f in same for s in f.sections)) if len(same) > 1 else (),
                folds=tuple(dict.fromkeys(fold for f in same for fold in f.folds)),
                inflates=first.inflates,
                mend=first.mend,
            )
        )
    return tuple(out)


class Sheet:
    """Where checks write what they find.

    Parameters
    ----------
    split
        Name of the split, for `where`.
    """

    def __init__(self, split: str) -> None:
        self._split = split
        self._found: dict[tuple[str, Severity, str], _Place] = {}
        self._checked: set[str] = set()
        self._unchecked: dict[tuple[str, str], None] = {}
        self.notes: list[str] = []

    def find(
        self,
        name: str,
        what: str,
        *,
        fold: str = "",
        severity: Severity | None = None,
        message: str = "",
        sections: Iterable[str] = (),
    ) -> None:
        """Add a finding; the same words in several folds are one finding."""
        self._checked.add(name)
        key = (name, severity or KINDS[name].severity, what)
        self._found.setdefault(key, _Place(message, tuple(sections), [])).folds.append(fold)

    def checked(self, *names: str) -> None:
        """These checks were made, at least in part."""
        self._checked.update(names)

    def unchecked(self, name: str, why: str) -> None:
        """This check could not be made, or not in full."""
        self._unchecked[name, why] = None

    def findings(self) -> tuple[Finding, ...]:
        """All findings, failures first, in the order of `KINDS`."""
        order = list(KINDS)
        keys = sorted(self._found, key=lambda k: (k[1] != "fail", order.index(k[0])))
        return tuple(
            Finding(
                name=name,
                severity=severity,
                what=what,
                message=place.message,
                sections=place.sections,
                folds=(folds := tuple(f for f in dict.fromkeys(place.folds) if f)),
                where=f"split {self._split!r}" + (f", fold {listed(folds)}" if folds else ""),
                inflates=KINDS[name].inflates,
                mend=KINDS[name].mend,
            )
            for (name, severity, what), place in ((key, self._found[key]) for key in keys)
        )

    def audit(self, *, cohort: str, level: Level) -> Audit:
        """Everything written so far."""
        return Audit(
            cohort=cohort,
            split=self._split,
            level=level,
            findings=self.findings(),
            checked=tuple(name for name in KINDS if name in self._checked),
            unchecked=tuple(Unchecked(name=name, why=why) for name, why in self._unchecked),
            notes=tuple(self.notes),
        )


class _Place(NamedTuple):
    message: str
    sections: tuple[str, ...]
    folds: list[str]


def listed(ids: Iterable[object], *, most: int = 6) -> str:
    """Ids as words, cut after `most`."""
    words = [str(i) for i in ids]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
