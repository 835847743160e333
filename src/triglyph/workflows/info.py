"""`triglyph info`: what a folder of ours is, by its records alone, or an `.h5ad`; no pixel of a folder is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triglyph.errors import SourceError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.section import Section

MOST_ROWS = 60
"""A table of results longer than this is cut, and says so."""
MOST_VALUES = 12
"""Values of a column are listed up to this many."""


@dataclass(frozen=True)
class Info:
    """What was found: the kind of folder and its facts, as they were printed."""

    kind: Literal["cohort", "section", "run", "table"]
    path: Path
    facts: dict[str, Any]


def info(path: Path) -> Info:
    """Say what a cohort, a section, a run or an `.h5ad` is.

    Parameters
    ----------
    path
        A folder that triglyph wrote, or an `.h5ad` of anybody.

    Raises
    ------
    SourceError
        It is none of them.
    ContractError
        It was written in a format this version does not read.
    """
    from rich.console import Console

    if path.suffix == ".h5ad":
        found, shown = _plain(path)
    elif not path.is_dir():
        raise SourceError("there is no such folder or .h5ad", where=path, mend="check the path")
    elif (path / "cohort.json").is_file():
        found, shown = _cohort(path)
    elif (path / "section.json").is_file():
        found, shown = _section(path)
    elif any((path / name).is_file() for name in ("manifest.json", "recipe.yaml", "results.json")):
        found, shown = _run(path)
    else:
        raise SourceError(
            "neither a cohort, nor a section, nor a run: it has no cohort.json, section.json or manifest.json",
            where=path,
            mend="give a folder that triglyph wrote",
        )
    console = Console()
    for part in shown:
        console.print(part)
    return found


def _cohort(path: Path) -> tuple[Info, list[RenderableType]]:
    from triglyph.tissue.cohort import Cohort

    cohort = Cohort.open(path)
    table = _table("section", "patient", "block", "platform", "locations", "genes", "µm/px", "encoded")
    for section in cohort:
        i = section.info
        scales = [f"{m.mpp:.4f}" if m.role == "full" else f"({m.mpp:.2f})" for m in i.images]
        cells = [i.id, i.patient, i.block, i.platform, f"{i.n_locations:,}", f"{i.n_genes:,}", "\n".join(scales)]
        table.add_row(*cells, str(len(section.embeddings.names()) or ""))
    if any(m.role == "preview" for s in cohort for m in s.info.images):
        table.caption = "(in brackets: a preview)"
    facts = {
        "name": cohort.name,
        "sections": len(cohort),
        "patients": len(set(cohort.patients.values())),
        "locations": sum(s.n_locations for s in cohort),
        "splits": _splits(cohort),
    }
    return Info("cohort", path, facts), [_facts(facts), table]


def _splits(cohort: Cohort) -> dict[str, str]:
    out = {}
    for name in cohort.splits:
        split = cohort.split(name)
        out[name] = f"{split.level}, {len(split.folds)} folds"
    return out


def _section(path: Path) -> tuple[Info, list[RenderableType]]:
    from triglyph.tissue.section import Section

    section = Section.open(path)
    i = section.info
    facts: dict[str, Any] = {
        "section": i.id,
        "patient": i.patient + (f" (block {i.block})" if i.block else ""),
        "platform": ", ".join(v for v in (i.platform, i.species, i.organ) if v),
        "locations": f"{i.n_locations:,} "
        + ("without a place" if i.location_um is None else f"of {i.location_um:g} µm ({i.location_shape})"),
        "pitch": "" if i.location_um is None else f"{i.pitch_um:g} µm" if i.pitch_um else "no lattice",
        "genes": f"{i.n_genes:,}",
    }
    for image in i.images:
        size = f"{image.size_px[0]:,} x {image.size_px[1]:,} px at {image.mpp:.4f} µm/px"
        there = "" if section.image_path(image).is_file() else "; the file is not there"
        facts[f"image {image.name} ({image.role})"] = f"{size} from {image.mpp_source}; {image.path}{there}"
    if i.pictures is not None:
        where = f"{i.pictures.n_files:,} files in {i.pictures.folder}, {i.pictures.scale}"
        facts["pictures"] = f"{where}; {i.pictures.mpp_source}"
    facts["embeddings"] = _embeddings(section)
    if names := section.annotations.names():
        facts["annotations"] = names
    facts["read from"] = {role: f["path"] for role, f in i.source.get("files", {}).items()}
    facts["notes"] = list(i.source.get("notes", []))
    return Info("section", path, facts), [_facts(facts)]


def _embeddings(section: Section) -> dict[str, str]:
    out = {}
    for fingerprint in section.embeddings.names():
        stored = section.embeddings.read(fingerprint)
        name = stored.card.get("name", "embedding")
        out[fingerprint] = f"{name}, {stored.values.shape[1]} numbers for {int(stored.present.sum()):,} locations"
    return out


def _run(path: Path) -> tuple[Info, list[RenderableType]]:
    from triglyph.bench.audit.findings import Audit
    from triglyph.metrics.result import read_results
    from triglyph.storage import read_json
    from triglyph.workflows.audit import shown as audit_shown

    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else {}
    facts: dict[str, Any] = {"state": "finished" if manifest else "not finished: there is no manifest.json yet"}
    facts |= {key: value for key, value in manifest.items() if key != "audit"}
    last = path / "checkpoints" / "last.ckpt"
    if last.exists():
        facts["checkpoint"] = "checkpoints/last.ckpt"
    shown: list[RenderableType] = [_facts(facts)]
    if "audit" in manifest:
        audit = Audit.model_validate(manifest["audit"])
        facts["audit"] = (
            "passed" if audit.passed else f"failed: {', '.join(dict.fromkeys(f.name for f in audit.failures))}"
        )
        shown += audit_shown(audit)
    if (path / "results.json").is_file():
        results = read_results(path)
        facts["results"] = len(results)
        # Single refits of a control and single units are many; their summaries say enough here.
        rows = [r for r in results if r.group == "all" and not (r.role == "control" and r.seed is not None)]
        table = _table("task", "direction", "metric", "model", "role", "level", "value", "interval", "n")
        for r in rows[:MOST_ROWS]:
            value = "undefined" if r.value is None else f"{r.value:.3f}"
            interval = "" if r.ci_low is None or r.ci_high is None else f"{r.ci_low:.3f} to {r.ci_high:.3f}"
            names = (r.task, r.direction, f"{r.metric}, {r.aggregation}", r.model, r.role, r.level)
            table.add_row(*names, value, interval, f"{r.n:,}")
        shown.append(table)
        if len(rows) > MOST_ROWS:
            shown.append(f"… {len(rows) - MOST_ROWS} more in results.json")
    return Info("run", path, facts), shown


def _plain(path: Path) -> tuple[Info, list[RenderableType]]:
    """What the verbs that take an `.h5ad` can be told of it: its columns, keys and layers, by name and size."""
    from triglyph.tissue.readers.tables import open_anndata

    table = open_anndata(path)
    columns = {}
    for name in table.obs:
        values = table.obs[name].dropna().unique()
        few = f": {', '.join(map(str, values))}" if len(values) <= MOST_VALUES else ""
        columns[str(name)] = f"{len(values):,} values{few}"
    facts: dict[str, Any] = {
        "locations": f"{table.n_obs:,}",
        "genes": f"{table.n_vars:,}",
        "columns (--patient-column, --section-column, --label-column)": columns,
        "obsm (--embedding)": {str(k): f"{v.shape[1]} numbers" for k, v in table.obsm.items()},
        "layers (--counts-layer)": list(map(str, table.layers)),
    }
    return Info("table", path, facts), [_facts(facts)]


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", min_width=len(name))
    return table


def _facts(facts: dict[str, Any]) -> RenderableType:
    """Two columns, empty facts left out, nested ones one line each."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        lines = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else value
        lines = [str(line) for line in lines] if isinstance(lines, list | tuple) else [str(lines)]
        if lines and lines != [""]:
            grid.add_row(f"[dim]{escape(key)}[/]", escape("\n".join(lines)))
    return grid
