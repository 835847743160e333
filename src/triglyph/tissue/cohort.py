"""The Cohort: sections plus a manifest, a table that a person may edit.

    cohort.json, sections.csv, clinical.csv (where there is one), splits/<name>.json, sections/<id>/

Folders of sections are the truth about what is there; `sections.csv` may state patient, block, species and organ
otherwise than the source did, and may have more columns. A row that a killed process did not add is added on open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from filelock import FileLock

from triglyph.cards import digest
from triglyph.errors import ContractError, SourceError, SplitError
from triglyph.storage import atomic_file, read_json, write_json
from triglyph.tissue.checks import checked_patient
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.section import Section
from triglyph.tissue.split import Split

FORMAT = 1
_OWN = ("patient", "block", "platform", "species", "organ", "locations", "genes", "mpp")
_EDITABLE = ("patient", "block", "species", "organ")


class Cohort:
    """A folder of sections. Open it with `Cohort.open`, make one with `Cohort.create`."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._open: dict[str, Section] = {}
        self.manifest = self._read_manifest()

    def __repr__(self) -> str:
        patients = len(set(self.patients.values()))
        return f"Cohort {self.name}: {len(self.ids)} sections of {patients} patients at {self.path}"

    @classmethod
    def create(cls, path: Path, *, name: str = "") -> Cohort:
        """Make an empty cohort, or open the one that is there."""
        path = Path(path)
        if not (path / "cohort.json").exists():
            if path.exists() and any(path.iterdir()):
                raise ContractError("the folder holds other things", where=path, mend="give a new or empty folder")
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "cohort.json", {"format": FORMAT, "name": name or path.name})
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Cohort:
        """Open a cohort's folder."""
        path = Path(path)
        if not (path / "cohort.json").is_file():
            raise SourceError(
                "not a cohort: it has no cohort.json", where=path, mend="make one with `triglyph read` or `simulate`"
            )
        found = read_json(path / "cohort.json")
        if found.get("format") != FORMAT:
            raise ContractError(f"written in format {found.get('format')}, this version reads {FORMAT}", where=path)
        return cls(path, found["name"])

    # ---- sections

    @property
    def ids(self) -> list[str]:
        """Section ids, sorted."""
        return list(self.manifest.index)

    @property
    def patients(self) -> dict[str, str]:
        """Section id -> patient id."""
        return dict(self.manifest["patient"])

    def __len__(self) -> int:
        return len(self.manifest)

    def __iter__(self) -> Iterator[Section]:
        return (self[section] for section in self.ids)

    def __contains__(self, section: object) -> bool:
        return section in self.manifest.index

    def __getitem__(self, section: str) -> Section:
        if section not in self._open:
            self._open[section] = self.opened(section)
        return self._open[section]

    def opened(self, section: str) -> Section:
        """A section opened anew, as the manifest states it; the cohort does not keep it, see `LazySections`."""
        if section not in self.manifest.index:
            raise SourceError(
                f"no section {section!r}", where=self.path, mend=f"the cohort has {', '.join(self.ids[:20])}"
            )
        row = self.manifest.loc[section]
        return Section.open(self.folder(section), overrides={key: str(row[key]) for key in _EDITABLE})

    def folder(self, section: str) -> Path:
        """Where a section lies, or will lie."""
        return self.path / "sections" / section

    def add(self, draft: SectionDraft, *, scratch: Path | None = None) -> Section:
        """Write a section and its row of the manifest; see `Section.write`."""
        if draft.section_id in self:
            raise ContractError(
                f"two sections are called {draft.section_id!r}", where=self.path, mend="rename one of them"
            )
        Section.write(draft, self.folder(draft.section_id), scratch=scratch)
        self.refresh()
        return self[draft.section_id]

    def refresh(self) -> None:
        """Read what is on disk now, and complete `sections.csv`."""
        with FileLock(self.path / ".sections.csv.lock"):
            self._open.clear()
            self.manifest = self._read_manifest()
            with atomic_file(self._csv) as partial:
                self.manifest.to_csv(partial)

    def genes(self, sections: Sequence[str], *, how: Literal["common", "union"] = "common") -> tuple[str, ...]:
        """Symbols measured in all (`common`) or any (`union`) of `sections`, sorted."""
        sets = []
        for section in sections:
            _, symbols, _, measured = self[section].expression()
            sets.append({s for s, m in zip(symbols, measured, strict=True) if m})
        if not sets:
            return ()
        return tuple(sorted(set.intersection(*sets) if how == "common" else set.union(*sets)))

    def digest(self) -> str:
        """Sixteen hex digits that change with any count, label, caption, centre, patient, section or recorded image."""
        return digest(
            {s.id: [s.info.table, s.info.locations, s.patient, [i.sha256 for i in s.info.images]] for s in self}
        )

    # ---- patients

    @property
    def clinical(self) -> pd.DataFrame:
        """`clinical.csv`: one row per patient, indexed by patient; what its columns mean is the cohort's own matter.

        Patients without a row are allowed, rows without a patient are not.

        Raises
        ------
        SourceError
            The cohort has no such table.
        ContractError
            It is not a table with a column `patient`, names somebody twice, or somebody of whom there is no section.
        """
        path = self.path / "clinical.csv"
        if not path.is_file():
            raise SourceError(
                "the cohort has no clinical table",
                where=path,
                mend="write a CSV with a column `patient` and one row per patient",
            )
        try:
            table = pd.read_csv(path, dtype={"patient": str})
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ContractError(f"not readable as a table ({error})", where=path, mend="correct it") from None
        if "patient" not in table.columns:
            raise ContractError("the table has no column `patient`", where=path, mend="add it")
        table["patient"] = [
            checked_patient(patient, where=f"{path}, row {row + 1}") for row, patient in enumerate(table["patient"])
        ]
        table = table.set_index("patient")
        if table.index.has_duplicates:
            twice = sorted(set(table.index[table.index.duplicated()]))
            raise ContractError(f"patients listed twice: {', '.join(twice)}", where=path, mend="keep one row of each")
        if unknown := sorted(set(table.index) - set(self.patients.values())):
            raise ContractError(
                f"there is no section of {', '.join(unknown[:10])}",
                where=path,
                mend="spell patients as sections.csv does, or remove the rows",
            )
        return table

    # ---- splits

    @property
    def splits(self) -> list[str]:
        """Names of the saved splits."""
        folder = self.path / "splits"
        return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("[!.]*.json"))

    def split(self, name: str) -> Split:
        """A saved split, checked against the sections that are here."""
        path = self.path / "splits" / f"{name}.json"
        if not path.is_file():
            there = f"name one that is saved ({', '.join(self.splits)}; of a recipe: --set data.split=NAME)"
            raise SplitError(
                f"no split {name!r}",
                where=self.path,
                mend=f"{there if self.splits else 'none is saved'}; or make it: triglyph split COHORT --name {name}",
            )
        split = Split.model_validate(read_json(path))
        split.check(self.patients)
        return split

    def save_split(self, split: Split) -> Path:
        """Check and save a split. A saved one is never changed: the same name with other content is refused."""
        split.check(self.patients)
        path = self.path / "splits" / f"{split.name}.json"
        if path.exists() and self.split(split.name).digest() != split.digest():
            raise SplitError(
                f"another split is saved as {split.name!r}", where=path, mend="give the new one another name"
            )
        write_json(path, split.model_dump(mode="json"))
        return path

    # ---- the manifest

    @property
    def _csv(self) -> Path:
        return self.path / "sections.csv"

    def _read_manifest(self) -> pd.DataFrame:
        folders = {p.parent.name: p.parent for p in (self.path / "sections").glob("[!.]*/section.json")}
        if self._csv.is_file():
            table = self._read_csv()
        else:
            table = pd.DataFrame(columns=pd.Index(_OWN), index=pd.Index([], name="section"), dtype=object)
        if gone := sorted(set(table.index) - set(folders)):
            raise ContractError(
                f"listed but not there: {', '.join(gone)}",
                where=self._csv,
                mend="remove their rows, or restore their folders",
            )
        for name in sorted(set(folders) - set(table.index)):
            info = Section.open(folders[name]).info
            if info.id != name:
                raise ContractError(
                    f"the folder {name!r} holds the section {info.id!r}",
                    where=folders[name],
                    mend="give the folder its section's name; a copy of a section is not another section",
                )
            full = [i for i in info.images if i.role == "full"]
            row = [info.patient, info.block, info.platform, info.species, info.organ, info.n_locations, info.n_genes]
            mpp = full[0].mpp if full else info.pictures.mpp[0] if info.pictures and info.pictures.mpp else None
            table.loc[name, list(_OWN)] = [*map(str, row), "" if mpp is None else f"{mpp:.4f}"]
        table = table.fillna("").sort_index()
        table.index.name = "section"
        self._check_patients(table)
        return table

    def _read_csv(self) -> pd.DataFrame:
        try:
            table = pd.read_csv(self._csv, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ContractError(
                f"not readable as a table ({error})",
                where=self._csv,
                mend="correct it, or delete it to have it made anew",
            ) from None
        if missing := [c for c in ("section", *_EDITABLE) if c not in table.columns]:
            raise ContractError(
                f"the manifest lacks the columns {', '.join(missing)}",
                where=self._csv,
                mend="add them, or delete the file to have it made anew",
            )
        table = table.set_index("section")
        for column in _EDITABLE:
            table[column] = table[column].str.strip()
        if table.index.has_duplicates:
            twice = sorted(set(table.index[table.index.duplicated()]))
            raise ContractError(f"sections listed twice: {', '.join(twice)}", where=self._csv, mend="remove one row")
        return table

    def _check_patients(self, table: pd.DataFrame) -> None:
        """Every section has a patient, and no two ids are one person spelt twice: that would leak across a split."""
        spelt: dict[str, str] = {}
        for section, patient in table["patient"].items():
            checked_patient(patient, where=f"{self._csv}, section {section}")
            plain = " ".join(str(patient).casefold().split())
            if spelt.setdefault(plain, str(patient)) != patient:
                raise ContractError(
                    f"{spelt[plain]!r} and {patient!r} look like one patient spelt twice",
                    where=f"{self._csv}, section {section}",
                    mend="spell a patient in one way",
                )
