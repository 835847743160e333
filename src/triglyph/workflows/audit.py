"""`triglyph audit`: what of a test set a split, a model or an encoder has already seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triglyph.errors import ContractError, RecipeError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from triglyph.bench.audit.findings import Audit, Gathered
    from triglyph.bench.audit.subject import SubjectInfo
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.plain import PlainCohort
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
    patient_column: str | None = None,
    section_column: str | None = None,
    label_column: str | None = None,
    counts_layer: str | None = None,
    um_per_unit: float | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> AuditReport:
    """Look for leaks: print findings, what each would inflate and the mend. The exit code is 1 if one fails.

    Parameters
    ----------
    cohort
        Folder of the cohort, or an `.h5ad`.
    split
        A saved split; of an `.h5ad`, the JSON file of one. Left out: the run's own one; else all that are saved; else
        leaving each patient out once.
    run
        What the split is to judge: a folder of `triglyph train` or `triglyph bench run`, or a recipe (YAML).
    embedding
        Name or fingerprint of stored features: near duplicates are looked for in them, and test sections on the
        encoder's card. Of an `.h5ad`, a key of `obsm`, of whose encoder nothing is known.
    level
        Audit the split as though it were declared so.
    seen
        Files of sections that an encoder was trained on: a section a line, or JSON. May be given several times.
    prompts
        Phrases for each class, as for `zero-shot`: captions that hold one name the class.
    patient_column
        Of an `.h5ad`: the column with patients (`patient`).
    section_column
        Of an `.h5ad`: the column with sections; without it a patient is one section.
    label_column
        Of an `.h5ad`: the column with classes (`label`).
    counts_layer
        Of an `.h5ad`: the layer with raw counts, where `X` has none.
    um_per_unit
        Of an `.h5ad`: µm per unit of `obsm["spatial"]` (1).
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
    RecipeError
        Columns were named for a cohort's folder, or a recipe for an `.h5ad`.
    """
    from triglyph.bench.audit.subject import Exposure, SubjectInfo
    from triglyph.bench.audit.whole import audit_split
    from triglyph.storage import write_json
    from triglyph.tissue.cohort import Cohort
    from triglyph.workflows.bench_subjects import open_cohort

    opened = open_cohort(
        Path(cohort),
        patient=patient_column,
        section=section_column,
        label=label_column,
        counts_layer=counts_layer,
        um_per_unit=um_per_unit,
    )
    subject, fingerprint = (None, None) if run is None else about_run(opened, Path(run))
    if embedding is not None and not isinstance(opened, Cohort):
        if embedding not in opened.table.obsm:
            there = ", ".join(opened.table.obsm) or "none"
            raise ContractError(f"obsm has no {embedding!r}", where=opened.path, mend=f"there are {there}")
        fingerprint = embedding
    elif embedding is not None and isinstance(opened, Cohort):
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


def _splits(cohort: Cohort | PlainCohort, name: str) -> Sequence[Split]:
    from triglyph.bench.audit.subject import declared
    from triglyph.tissue.split import patient_folds

    if name or cohort.splits:
        return [declared(cohort, n) for n in ([name] if name else cohort.splits)]
    return [patient_folds(cohort.patients, name="every patient left out once")]


def about_run(cohort: Cohort | PlainCohort, path: Path) -> tuple[SubjectInfo, str | None]:
    """What a run says of itself, and the fingerprint of its stored image features where there are any."""
    from triglyph.bench.audit.subject import encoder_names, read_recipe, read_subject, recipe_encoders
    from triglyph.storage import read_json
    from triglyph.tissue.cohort import Cohort

    manifest = path / "manifest.json"
    if not manifest.is_file():
        recipe = path / "recipe.yaml" if path.is_dir() else path
        if recipe.is_file():
            if not isinstance(cohort, Cohort):
                raise RecipeError("a recipe trains on a cohort's folder", where=recipe, mend="read the .h5ad into one")
            return read_recipe(recipe, cohort, cards=_cards(recipe_encoders(recipe))), None
        return read_subject(path), None  # says what is wrong
    found: dict[str, Any] = read_json(manifest)
    about = found.get("subject", {}) if found.get("kind") == "bench" else found
    tower = (about.get("encoders") or {}).get("image") or {}
    if not isinstance(cohort, Cohort):
        return read_subject(path, cards=_cards(encoder_names(found))), about.get("obsm")
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
    from triglyph.apply.prompts import Prompts

    return dict(Prompts.read(path).classes)


def _print(report: AuditReport) -> None:
    from rich.console import Console

    console = Console()
    for audit in report.audits:
        for part in shown(audit):
            console.print(part)


def shown(audit: Audit) -> list[RenderableType]:
    """An audit as a person reads it: the verdict, each message once with its places, and what was not checked."""
    from rich.markup import escape
    from rich.rule import Rule
    from rich.text import Text

    from triglyph.bench.audit.findings import gathered, listed

    messages = gathered(audit.findings)
    failures = sum(m.severity == "fail" for m in messages)
    verdict = "passes" if audit.passed else f"fails: {failures} finding{'s' * (failures != 1)}"
    parts: list[RenderableType] = [Rule(f"[bold]{escape(audit.split)}[/] ({audit.level}) {verdict}", align="left")]
    if messages:
        parts.append(_table(messages))
    parts += [Text(f"note: {note}") for note in audit.notes]
    made = f"{failures} failed, {len(messages) - failures} advised, {len(audit.checked)} checks made"
    parts.append(Text(made + ("; not checked, or not in full:" if audit.unchecked else "")))
    why: dict[str, list[str]] = {}
    for skipped in audit.unchecked:
        why.setdefault(skipped.why, []).append(skipped.name)
    parts += [Text(f"  {listed(names)}: {reason}") for reason, names in why.items()]
    return parts


def _table(messages: Sequence[Gathered]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from triglyph.bench.audit.findings import listed

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False, show_lines=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for m in messages:
        colour = "red" if m.severity == "fail" else "yellow"
        places = [
            f"{noun}{'s' * (len(of) != 1)} {listed(of)}"
            for noun, of in (("section", m.sections), ("fold", m.folds))
            if of
        ]
        said = [escape(m.what)] + ([f"[dim]in[/] {escape('; '.join(places))}"] if places else [])
        said += [f"[dim]inflates[/] {escape(m.inflates)}", f"[dim]mend[/] {escape(m.mend)}"]
        table.add_row(f"[bold {colour}]{m.severity}[/]\n{escape(m.name)}", "\n".join(said))
    return table
