"""`triglyph audit`: what of a test set a split, a model or an encoder has already seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triglyph.errors import ContractError, RecipeError

if TYPE_CHECKING:
    from triglyph.bench.audit.findings import Audit, Finding
    from triglyph.bench.audit.subject import SubjectInfo
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.split import Split

Level = Literal["patient", "within-patient", "within-section"]


@dataclass(frozen=True)
class AuditReport:
    """The audits of one cohort, one a split; `exit_code` is 1 if any fails."""

    audits: tuple[Audit, ...]

    @property
    def exit_code(self) -> int:
        """0 if all pass, 1 if one fails."""
        return int(not all(audit.passed for audit in self.audits))


def audit(
    cohort: Path,
    *,
    split: str | None = None,
    run: Path | None = None,
    embedding: str | None = None,
    level: Level | None = None,
    seen: list[Path] | None = None,
    prompts: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> AuditReport:
    """Look for leaks: print findings, what each would inflate and the mend. The exit code is 1 if one fails.

    Parameters
    ----------
    cohort
        Folder of the cohort.
    split
        A saved split. Left out: the run's own one; else all that are saved; else leaving each patient out once.
    run
        What the split is to judge: a folder of `triglyph train` or `triglyph bench run`, or a recipe (YAML).
    embedding
        Name or fingerprint of stored features: near duplicates are looked for in them, and test sections on the
        encoder's card.
    level
        Audit the split as though it were declared so.
    seen
        Files of sections that an encoder was trained on: a section a line, or JSON. May be given several times.
    prompts
        Phrases for each class, as for `zero-shot`: captions that hold one name the class.
    out
        Folder for `audit.json`.
    seed
        Of the locations drawn, and of the shifts of label maps.

    Returns
    -------
    AuditReport
        One audit a split.

    Raises
    ------
    SplitError
        No such split, or there is none and only one patient.
    SourceError
        The cohort, the run or a file of seen sections is not there.
    ContractError
        No section holds such features.
    """
    from triglyph.bench.audit.subject import Exposure, SubjectInfo
    from triglyph.bench.audit.whole import audit_split
    from triglyph.storage import write_json
    from triglyph.tissue.cohort import Cohort

    opened = Cohort.open(Path(cohort))
    subject, fingerprint = (None, None) if run is None else about_run(opened, Path(run))
    if embedding is not None:
        fingerprint, card = stored_features(opened, embedding)
        subject = about_encoder(card, subject)
    if seen:
        read = tuple(Exposure.read(Path(path)) for path in seen)
        subject = subject or SubjectInfo(name=", ".join(e.encoder for e in read))
        subject = subject.model_copy(update={"encoders": (*subject.encoders, *read)})
    synonyms = {} if prompts is None else _phrases(Path(prompts))
    audits = []
    for chosen in _splits(opened, split or (subject.split if subject else "")):
        asked = chosen if level is None else chosen.model_copy(update={"level": level})
        audits.append(
            audit_split(opened, asked, subject_info=subject, synonyms=synonyms, embedding=fingerprint, seed=seed)
        )
    report = AuditReport(tuple(audits))
    if out is not None:
        write_json(Path(out) / "audit.json", {"format": 1, "audits": [a.model_dump(mode="json") for a in audits]})
    _print(report)
    return report


def _splits(cohort: Cohort, name: str) -> Sequence[Split]:
    from triglyph.bench.audit.subject import declared
    from triglyph.tissue.split import patient_folds

    if name or cohort.splits:
        return [declared(cohort, n) for n in ([name] if name else cohort.splits)]
    return [patient_folds(cohort.patients, name="every patient left out once")]


def about_run(cohort: Cohort, path: Path) -> tuple[SubjectInfo, str | None]:
    """What a run says of itself, and the fingerprint of its stored image features where there are any."""
    from triglyph.bench.audit.subject import encoder_names, read_recipe, read_subject, recipe_encoders
    from triglyph.storage import read_json

    manifest = path / "manifest.json"
    if not manifest.is_file():
        recipe = path / "recipe.yaml" if path.is_dir() else path
        if recipe.is_file():
            return read_recipe(recipe, cohort, cards=_cards(recipe_encoders(recipe))), None
        return read_subject(path), None  # says what is wrong
    found: dict[str, Any] = read_json(manifest)
    about = found.get("subject", {}) if found.get("kind") == "bench" else found
    tower = (about.get("encoders") or {}).get("image") or {}
    fingerprint = about.get("fingerprint") or tower.get("fingerprint")
    if not any(fingerprint in section.embeddings.names() for section in cohort):
        fingerprint = None
    return read_subject(path, cards=_cards(encoder_names(found))), fingerprint


def _cards(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Cards of the encoders that are installed; of the others the audit says that it knows nothing."""
    from triglyph.encoders import registry

    found = {}
    for name in names:
        try:
            found[name] = registry.card(name).model_dump(mode="json")
        except RecipeError:
            continue
    return found


def stored_features(cohort: Cohort, wanted: str) -> tuple[str, Mapping[str, Any]]:
    """Fingerprint of the stored features called `wanted`, and the encoder's card."""
    found: dict[str, Mapping[str, Any]] = {}
    for section in cohort:
        for fingerprint in section.embeddings.names():
            found.setdefault(fingerprint, section.embeddings.read(fingerprint).card)
    matching = [f for f, card in found.items() if wanted in (f, card.get("name"))]
    if len(matching) != 1:
        known = ", ".join(sorted(f"{card.get('name')} ({f})" for f, card in found.items())) or "none"
        raise ContractError(
            f"{wanted!r} names {len(matching)} stored features",
            where=cohort.path,
            mend=f"give a fingerprint, or run `triglyph embed`; there are {known}",
        )
    card = found[matching[0]]
    return matching[0], {"name": card.get("name", wanted), **(card.get("encoder") or {})}


def about_encoder(card: Mapping[str, Any], subject: SubjectInfo | None) -> SubjectInfo:
    """An encoder as what is judged, or added to what is."""
    from triglyph.bench.audit.subject import SubjectInfo, of_encoders

    more = of_encoders([card["name"]], {card["name"]: card})
    if subject is None:
        modality = card.get("modality")
        return SubjectInfo(name=card["name"], inputs=(modality,) if modality else None, **more)
    windows = [w for w in (subject.window_um, more["window_um"]) if w is not None]
    known = {e.encoder for e in subject.encoders}
    added = tuple(e for e in more["encoders"] if e.encoder not in known)
    return subject.model_copy(update={"encoders": (*subject.encoders, *added), "window_um": max(windows, default=None)})


def _phrases(path: Path) -> dict[str, tuple[str, ...]]:
    from triglyph.bench.labels.zero_shot import Prompts

    return dict(Prompts.read(path).classes)


def _print(report: AuditReport) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for audit in report.audits:
        failures, advice = len(audit.failures), len(audit.findings) - len(audit.failures)
        verdict = "passes" if audit.passed else f"fails: {failures} finding{'s' * (failures != 1)}"
        console.rule(f"[bold]{escape(audit.split)}[/] ({audit.level}) {verdict}", align="left")
        if audit.findings:
            console.print(_table(audit.findings))
        for note in audit.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        console.print(
            f"{failures} failed, {advice} advised, {len(audit.checked)} checks made; not checked, or not in full:",
            highlight=False,
        )
        for skipped in audit.unchecked:
            console.print(f"  {skipped.name}: {skipped.why}", markup=False, highlight=False)


def _table(findings: Sequence[Finding]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False, show_lines=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for f in findings:
        colour = "red" if f.severity == "fail" else "yellow"
        said = [f"{escape(f.what)} [dim]({escape(f.where)})[/]"]
        said += [f"[dim]inflates[/] {escape(f.inflates)}", f"[dim]mend[/] {escape(f.mend)}"]
        table.add_row(f"[bold {colour}]{f.severity}[/]\n{escape(f.name)}", "\n".join(said))
    return table
