"""What an audit says: findings, what was checked, and what could not be. Unmeasured is not a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    where: str
    """Split and fold."""
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


class Sheet:
    """Where checks write what they find.

    Parameters
    ----------
    split
        Name of the split, for `where`.
    """

    def __init__(self, split: str) -> None:
        self._split = split
        self._found: dict[tuple[str, Severity, str], list[str]] = {}
        self._checked: set[str] = set()
        self._unchecked: dict[tuple[str, str], None] = {}
        self.notes: list[str] = []

    def find(self, name: str, what: str, *, fold: str = "", severity: Severity | None = None) -> None:
        """Add a finding; the same words in several folds are one finding."""
        key = (name, severity or KINDS[name].severity, what)
        self._checked.add(name)
        self._found.setdefault(key, []).append(fold)

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
                where=self._where(self._found[name, severity, what]),
                inflates=KINDS[name].inflates,
                mend=KINDS[name].mend,
            )
            for name, severity, what in keys
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

    def _where(self, folds: Sequence[str]) -> str:
        named = [f for f in dict.fromkeys(folds) if f]
        return f"split {self._split!r}" + (f", fold {listed(named)}" if named else "")


def listed(ids: Iterable[object], *, most: int = 6) -> str:
    """Ids as words, cut after `most`."""
    words = [str(i) for i in ids]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
