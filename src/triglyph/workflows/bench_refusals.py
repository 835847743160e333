"""What `bench run` refuses before it opens anything: the cheapest checks first, and no folder touched.

Opening a cohort, a model or an embedding takes seconds of imports and minutes of reading. Whatever the words of the
command and the files that they name decide is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from triglyph.errors import RecipeError, SourceError, SplitError, StorageError
from triglyph.storage import read_json

ALL = "all"
_OWNERS = {"prompts": "zero-shot", "panel": "genes-from-genes"}
"""Options that are files -> the protocol whose constant they are."""
_LEAVE_ONE_OUT = "leave-one-patient-out"
"""As `triglyph.tissue.plain` makes it of the patients; importing that takes anndata."""


def refuse(
    name: str,
    *,
    cohort: Path,
    out: Path,
    model: Path | None,
    embedding: str | None,
    split: str | None,
    fold: str | None,
    null: int,
    baselines: bool,
    files: Mapping[str, Path | None],
    constants: Sequence[str],
    allow: Sequence[str],
) -> None:
    """Raise what the options alone, and files of a few lines, show to be wrong.

    Parameters
    ----------
    files
        `prompts` and `panel`.
    constants
        `key=value` each.

    Raises
    ------
    RecipeError
        Options contradict each other; the protocol, one of its constants or a finding of the audit is unknown.
    SourceError
        There is no such cohort, or a file of constants holds nothing.
    SplitError
        No split was named, or there is none of that name, or no such fold.
    StorageError
        `out` is there, or cannot be written; or `model` is no finished run.
    """
    _contradictions(name, model, embedding, baselines=baselines, files=files)
    _free(out)
    if model is not None and cohort.suffix == ".h5ad":
        raise RecipeError("a model reads sections of a cohort, not a table", mend="give --embedding KEY")
    asked, _ = named(name, constants, files)
    own = {} if model is None else _own_split(model)
    _there(cohort)
    if asked is None or asked.needs_split:
        _saved(cohort, split or own.get("name"), fold)
    elif split is not None or fold is not None or cohort.suffix == ".h5ad":
        raise RecipeError(
            f"{name} tests every section of a cohort of images",
            where="bench run",
            mend="leave out --split and --fold, and give the folder that `triglyph read` wrote",
        )
    _known(null, allow)


def named(name: str, constants: Sequence[str], files: Mapping[str, Path | None]) -> tuple[Any, dict[str, Any]]:
    """The protocol of that name with its constants, None for `all`; and the constants that came from files.

    Raises
    ------
    RecipeError
        No such protocol, or no such constant, or a value that does not fit; or constants for `all`.
    """
    from triglyph.bench.registry import parse_options, protocol

    options, read = parse_options(constants), _read(files)
    if name != ALL:
        return protocol(name, {**options, **read}), read
    if options or "core" in read:
        raise RecipeError(
            "constants belong to one protocol",
            where="--set" if options else "--panel",
            mend=f"name the protocol instead of {ALL!r}",
        )
    return None, read


def _contradictions(
    name: str, model: Path | None, embedding: str | None, *, baselines: bool, files: Mapping[str, Path | None]
) -> None:
    for option, owner in _OWNERS.items():
        if files[option] is not None and name not in (owner, ALL):
            raise RecipeError(f"{name} has no {option}", where=f"--{option}", mend=f"use it with {owner}")
    if model is not None and embedding is not None:
        raise RecipeError("give --model or --embedding, not both", where="bench run", mend="one of the two")
    if model is None and embedding is None and not baselines:
        raise RecipeError("nothing to judge", where="bench run", mend="give --model or --embedding, or keep baselines")


def _free(out: Path) -> None:
    """Results are written at the end: hours of work must not be lost to a place that cannot take them."""
    if out.exists():
        raise StorageError("already written", where=out, mend="remove it, or write to another place")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError("nothing can be written here", where=parent, mend="give another --out")


def _own_split(model: Path) -> dict[str, Any]:
    """The split that a run was trained on; {} for none."""
    if not (model / "manifest.json").is_file():
        started = (model / "recipe.yaml").is_file()
        raise StorageError(
            "the run is not finished" if started else "not a run: it has no manifest.json",
            where=model,
            mend="run the same `triglyph train` command again" if started else "give the --out of `triglyph train`",
        )
    found: dict[str, Any] = read_json(model / "manifest.json").get("split") or {}
    return found


def _there(cohort: Path) -> None:
    plain = cohort.suffix == ".h5ad"
    if not (cohort if plain else cohort / "cohort.json").is_file():
        what = "there is no such file" if plain else "not a cohort: it has no cohort.json"
        raise SourceError(what, where=cohort, mend="give a folder of `triglyph read` or `simulate`, or an .h5ad")


def _saved(cohort: Path, split: str | None, fold: str | None) -> None:
    plain = cohort.suffix == ".h5ad"
    folder = cohort / "splits"
    saved = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("[!.]*.json"))
    if not split:
        known = _LEAVE_ONE_OUT if plain else ", ".join(saved) or "none"
        raise SplitError("no split was named", where=cohort, mend=f"give --split; saved: {known}")
    if plain:
        if split != _LEAVE_ONE_OUT and not Path(split).is_file():
            raise SplitError(
                f"no split {split!r}", where=cohort, mend=f"give {_LEAVE_ONE_OUT}, or the JSON file of a split"
            )
        return
    from triglyph.bench.audit.subject import declared

    found = declared(SimpleNamespace(path=cohort, splits=saved), split)
    if fold is not None:
        found.fold(fold)


def _known(null: int, allow: Sequence[str]) -> None:
    from triglyph.bench.audit.kinds import KINDS
    from triglyph.bench.null import MIN_REFITS

    if unknown := sorted(set(allow) - set(KINDS)):
        raise RecipeError(
            f"the audit has no finding {', '.join(unknown)}", where="--allow", mend=f"it has {', '.join(KINDS)}"
        )
    if null and null < MIN_REFITS:
        raise RecipeError(
            f"a null of {null} refits has no 95th percentile",
            where="--null",
            mend=f"take {MIN_REFITS} or more, or 0 for none",
        )


def _read(files: Mapping[str, Path | None]) -> dict[str, Any]:
    """Constants of a protocol that come from files."""
    from triglyph.apply.prompts import Prompts
    from triglyph.bench.expression.protocol import read_panel

    prompts, panel = files["prompts"], files["panel"]
    return {
        **({} if prompts is None else {"prompts": Prompts.read(prompts).model_dump()}),
        **({} if panel is None else {"core": read_panel(panel)}),
    }
