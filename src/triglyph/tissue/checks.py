"""The gate every section passes before anything is written: one contract, whatever the vendor.

`check_draft` refuses what would be wrong later (normalised counts, duplicated barcodes, locations off the image, two
scales, no patient) with the row and the mend, and brings what is right into one plain shape: CSR integers, NumPy
booleans, Python strings, so that one store reads alike with pandas 2 and 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from numbers import Real
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from triglyph.errors import ContractError, ScaleError, SourceError
from triglyph.tissue.cells import CELLS
from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.pictures import check_pictures
from triglyph.units import checked_mpp

MAX_SCALE_DISAGREEMENT = 0.02
"""Two statements of one scale may differ by this much."""
MAX_ANISOTROPY = 0.05
"""The two axes of one image may differ by this much."""

_SECTION_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_RESERVED = ("region", "instance_id")
_NO_PATIENT = ("", "nan", "none", "na", "n/a", "<na>", "null")


def check_draft(draft: SectionDraft, *, where: object) -> SectionDraft:
    """Check a draft against the contract and normalise it.

    The draft's table is replaced by a normalised copy; the AnnData that was given is left as it was.

    Parameters
    ----------
    draft
        What a reader or the simulator made.
    where
        Where it came from, for messages.

    Returns
    -------
    SectionDraft
        The same draft.

    Raises
    ------
    ContractError
        The id, patient, counts, barcodes, genes or centres break the contract.
    ScaleError
        A scale is missing, impossible, or stated twice and differently.
    SourceError
        An image does not open.
    """
    draft.section_id = safe_id(draft.section_id, where=where)
    draft.patient = checked_patient(draft.patient, where=f"{where}, section {draft.section_id}")
    where = where if str(where) == draft.section_id else f"{where}, section {draft.section_id}"
    _check_sizes(draft, where=where)
    without = draft.pictures is not None or CELLS in draft.table.obsm or not draft.counted
    draft.table = checked_table(draft.table, where=where, placed=draft.placed, genes=not without)
    _check_images(draft, where=where)
    if draft.pictures is not None:
        if draft.placed:
            raise ContractError(
                "locations have a place, and a picture each",
                where=where,
                mend="give the image they lie on, or location_shape 'none'",
            )
        check_pictures(draft.table, draft.pictures, where=where)
    try:
        json.dumps(draft.source, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(f"the provenance is not JSON ({error})", where=where, mend="give plain values") from None
    return draft


def safe_id(value: object, *, where: object) -> str:
    """`value` as the name of a section's folder.

    Raises
    ------
    ContractError
        It is empty, has characters other than letters, digits and `-._`, or starts with `.` or `-`.
    """
    text = str(value)
    if not _SECTION_ID.fullmatch(text):
        raise ContractError(
            f"{text!r} cannot name a section",
            where=where,
            mend="use letters, digits and -._ alone (at most 100), starting with a letter, a digit or _",
        )
    return text


def checked_patient(value: object, *, where: object) -> str:
    """`value` as a patient id; a missing one is an error, for patients are the unit of every claim.

    Raises
    ------
    ContractError
        It is empty, or a word for missing.
    """
    text = "" if value is None else str(value).strip()
    if text.lower() in _NO_PATIENT:
        raise ContractError(
            "the patient is not known",
            where=where,
            mend="give --patients FILE.csv (columns section, patient) or --patient ID",
        )
    return text


def checked_table(table: ad.AnnData, *, where: object, placed: bool = True, genes: bool = True) -> ad.AnnData:
    """A normalised copy of `table`; see `SectionDraft` for its shape.

    Parameters
    ----------
    placed
        Whether locations have centres.
    genes
        Whether there have to be any.
    """
    if table.n_obs == 0:
        raise ContractError("there are no locations", where=where, mend="check the counts file; it may be empty")
    if genes and table.n_vars == 0:
        raise ContractError("there are no genes", where=where, mend="check the counts file; it may be empty")
    barcodes, symbols = _text(table.obs_names), _text(table.var_names)
    _refuse_duplicates(barcodes, "barcode", "row", where=where, mend="keep one row per location")
    _refuse_duplicates(
        symbols, "gene symbol", "column", where=where, mend="sum their columns, or name them apart by Ensembl id"
    )
    counts = checked_counts(table.X, barcodes=barcodes, genes=symbols, where=where)
    obs, var = _plain_frame(table.obs, barcodes), _plain_frame(table.var, symbols)
    for frame, name in ((obs, "caption"), (obs, "label"), (var, "ensembl_id")):
        frame[name] = _strings(frame[name] if name in frame else [""] * len(frame), frame.index)
    var["measured"] = _measured(var, where=where) if "measured" in var else True
    _refuse_unmeasured_counts(counts, var["measured"].to_numpy(), symbols, where=where)
    _check_names(table, obs, var, where=where)
    out = ad.AnnData(X=counts, obs=obs, var=var, uns=dict(table.uns))
    for key, value in table.obsm.items():
        out.obsm[key] = value
    for key, value in table.layers.items():
        out.layers[key] = value
    out.obsm["spatial"] = _centres(table, barcodes, where=where) if placed else _no_centres(table, where=where)
    return out


def checked_counts(matrix: Any, *, barcodes: NDArray[Any], genes: NDArray[Any], where: object) -> sp.csr_matrix:
    """`matrix` (n, genes) as CSR int32 (int64 where needed), without stored zeros.

    Raises
    ------
    ContractError
        A value is not a finite, whole, non-negative number; the first row that has one is named.
    """
    if matrix is None:
        raise ContractError("the table has no counts", where=where, mend="put raw counts in X")
    given = matrix if sp.issparse(matrix) else np.asarray(matrix)
    if given.dtype.kind not in "biuf":
        raise ContractError(f"counts are {given.dtype}, not numbers", where=where, mend="give raw counts")
    found = sp.csr_matrix(given.astype(np.float32) if given.dtype == np.float16 else given)
    found.sum_duplicates()
    values = found.data
    raw = "give raw counts; found log-normalised values?"
    for bad, what, mend in (
        (~np.isfinite(values), "not finite", "remove the location, or mark the gene unmeasured; NaN is not zero"),
        (values < 0, "negative", "give raw counts; found scaled or centred values?"),
        (values != np.floor(values), "not a whole number", raw),
        (values > 2**62, "too large for a count", raw),
    ):
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            row = int(np.searchsorted(found.indptr, first, side="right")) - 1
            raise ContractError(
                f"count {values[first]:g} is {what} ({int(bad.sum()):,} such values)",
                where=f"{where}, row {row} (barcode {barcodes[row]}), gene {genes[found.indices[first]]}",
                mend=mend,
            )
    highest = int(values.max()) if values.size else 0
    found = found.astype(np.int32 if highest < 2**31 else np.int64)
    found.eliminate_zeros()
    found.sort_indices()
    return found


def agree(one: float, one_source: str, other: float, other_source: str, *, where: object) -> None:
    """Refuse two statements of one scale that differ by more than 2 %.

    Raises
    ------
    ScaleError
        They contradict each other; both numbers and both sources are shown.
    """
    if abs(one - other) > MAX_SCALE_DISAGREEMENT * min(one, other):
        raise ScaleError(
            f"two scales contradict each other: {one:.4f} µm/px ({one_source}) and {other:.4f} µm/px ({other_source})",
            where=where,
            mend="find out which one is wrong and correct that file, or leave --mpp out if it was the one",
        )


def outside_image(centres_px: NDArray[np.float64], size_px: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask (n,) of the centres (n, 2) that lie off an image of `size_px` (width, height)."""
    off = (centres_px < 0) | (centres_px > np.asarray(size_px, dtype=np.float64))
    return np.asarray(off.any(axis=1))


def image_size(image: ImageSource) -> tuple[int, int]:
    """Width and height of an image in pixels.

    Raises
    ------
    SourceError
        It does not open; a full image must also be readable at random.
    """
    from PIL import Image, UnidentifiedImageError

    from triglyph.tissue.pixels import open_pixels

    if image.role == "preview":
        try:
            with Image.open(image.path) as picture:
                return picture.size
        except (UnidentifiedImageError, OSError) as error:
            raise SourceError(f"the image does not open ({error})", where=image.path, mend="copy it again") from error
    pixels = open_pixels(image.path)
    try:
        return pixels.levels[0].width, pixels.levels[0].height
    finally:
        pixels.close()


def _check_sizes(draft: SectionDraft, *, where: object) -> None:
    if not draft.placed:
        sized = [name for name in ("location_um", "pitch_um") if getattr(draft, name) is not None]
        if sized or draft.images:
            what = sized[0] if sized else "a whole image"
            raise ContractError(
                f"locations have no place (location_shape 'none'), and yet there is {what}",
                where=where,
                mend="leave it out, or say the shape and the centres of the locations",
            )
        return
    sizes: list[tuple[str, object]] = [("location_um", draft.location_um)]
    sizes += [("pitch_um", draft.pitch_um)] if draft.pitch_um is not None else []
    for name, value in sizes:
        if not isinstance(value, Real) or not np.isfinite(float(value)) or value <= 0:
            raise ScaleError(f"{name} is {value!r}", where=where, mend="give a length in µm above zero")


def _check_images(draft: SectionDraft, *, where: object) -> None:
    keys = [(image.name, image.role) for image in draft.images]
    if len(set(keys)) < len(keys):
        raise ContractError("two images have one name and role", where=where, mend="name them apart")
    for image in draft.images:
        mpp = checked_mpp(image.mpp, where=image.path)
        if not image.mpp_source.strip():
            raise ScaleError("the scale does not say where it came from", where=image.path, mend="set mpp_source")
        step_x, step_y = image.to_um.steps
        agree(mpp, image.mpp_source, image.to_um.mpp, "the map to the section's frame", where=image.path)
        if abs(step_x - step_y) > MAX_ANISOTROPY * min(step_x, step_y):
            raise ScaleError(
                f"the image's axes have different scales: x {step_x:.4f}, y {step_y:.4f} µm/px",
                where=image.path,
                mend="resample the image to square pixels",
            )
        size = image_size(image)
        centres_px = image.to_um.inverse()(draft.table.obsm["spatial"])
        bad = np.flatnonzero(outside_image(centres_px, size))
        if bad.size:
            x, y = centres_px[bad[0]]
            raise ContractError(
                f"{bad.size:,} of {draft.table.n_obs:,} locations lie outside the image of {size[0]} x {size[1]} px; "
                f"the first at pixel ({x:.1f}, {y:.1f})",
                where=f"{where}, row {bad[0]} (barcode {draft.table.obs_names[bad[0]]}), image {image.path}",
                mend="check that image and positions belong together and share their pixels; "
                "--outside drop leaves such locations out and records it",
            )


def _centres(table: ad.AnnData, barcodes: NDArray[Any], *, where: object) -> NDArray[np.float64]:
    if "spatial" not in table.obsm:
        raise ContractError("obsm['spatial'] is missing", where=where, mend="give the centres of the locations")
    try:
        centres = np.array(table.obsm["spatial"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ContractError(f"obsm['spatial'] is not numbers ({error})", where=where, mend="give x, y in µm") from None
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ContractError(
            f"obsm['spatial'] has shape {centres.shape}, not (n, 2)", where=where, mend="give x and y alone"
        )
    bad = np.flatnonzero(~np.isfinite(centres).all(axis=1))
    if bad.size:
        raise ContractError(
            f"{bad.size:,} locations have no position: {centres[bad[0]].tolist()}",
            where=f"{where}, row {bad[0]} (barcode {barcodes[bad[0]]})",
            mend="complete the positions file, or remove the locations",
        )
    return centres


def _no_centres(table: ad.AnnData, *, where: object) -> NDArray[np.float64]:
    """All NaN, for a section that says it is unplaced; positions beside that word are a contradiction."""
    if "spatial" in table.obsm and np.isfinite(np.asarray(table.obsm["spatial"], dtype=np.float64)).any():
        raise ContractError(
            "locations have no place (location_shape 'none'), and yet obsm['spatial'] holds positions",
            where=where,
            mend="remove them, or say the shape and the size of the locations",
        )
    return np.full((table.n_obs, 2), np.nan)


def _refuse_duplicates(values: NDArray[Any], noun: str, place: str, *, where: object, mend: str) -> None:
    empty = np.flatnonzero(values == "")
    if empty.size:
        raise ContractError(f"a {noun} is empty", where=f"{where}, {place} {empty[0]}", mend="name it")
    twice = pd.Index(values).duplicated()
    if twice.any():
        first = values[twice][0]
        rows = np.flatnonzero(values == first)
        names = list(dict.fromkeys(values[twice]))
        raise ContractError(
            f"{len(names):,} {noun}s occur more than once: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            where=f"{where}, {place}s {', '.join(map(str, rows[:5]))} ({first})",
            mend=mend,
        )


def _refuse_unmeasured_counts(
    counts: sp.csr_matrix, measured: NDArray[np.bool_], genes: NDArray[Any], *, where: object
) -> None:
    found = np.flatnonzero(~measured & (np.asarray(counts.sum(axis=0)).ravel() > 0))
    if found.size:
        raise ContractError(
            f"{found.size:,} genes are marked unmeasured and have counts",
            where=f"{where}, gene {genes[found[0]]}",
            mend="mark them measured, or remove their counts",
        )


def _measured(var: pd.DataFrame, *, where: object) -> NDArray[np.bool_]:
    column = var["measured"]
    if column.isna().any() or not set(column.unique()) <= {True, False}:
        raise ContractError("var['measured'] is not true or false everywhere", where=where, mend="fill it")
    return column.to_numpy(dtype=bool)


def _check_names(table: ad.AnnData, obs: pd.DataFrame, var: pd.DataFrame, *, where: object) -> None:
    """Names that the store can hold: letters, digits and `_-.`, apart when letter case is ignored."""
    for name in _RESERVED:
        if name in obs:
            raise ContractError(f"obs column {name!r} is taken by the store", where=where, mend="rename or drop it")
    groups = {"obs": obs.columns, "var": var.columns, "obsm": table.obsm, "layers": table.layers, "uns": table.uns}
    for group, names in groups.items():
        seen: dict[str, str] = {}
        for name in names:
            if not storable_name(name) or name.lower() in seen:
                clash = f" beside {seen[name.lower()]!r}" if isinstance(name, str) and name.lower() in seen else ""
                raise ContractError(
                    f"{group} key {name!r}{clash} cannot be stored",
                    where=where,
                    mend="use letters, digits and _-. alone, different also when letter case is ignored",
                )
            seen[name.lower()] = name


def storable_name(name: object) -> bool:
    """Whether `name` can be a key of a stored table."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..", "_index")
        and not name.startswith("__")
        and all(c.isalnum() or c in "_-." for c in name)
    )


def _plain_frame(frame: pd.DataFrame, names: NDArray[Any]) -> pd.DataFrame:
    """Columns as NumPy numbers, NumPy booleans or Python strings; no categories, no nullable or Arrow types."""
    index = pd.Index(names, dtype=object)
    out = pd.DataFrame(index=index)
    for name in frame.columns:
        column = frame[name]
        number = not isinstance(column.dtype, pd.CategoricalDtype) and column.dtype.kind in "biuf"
        missing = bool(column.isna().any())
        if not number or (column.dtype.kind == "b" and missing):
            out[name] = _strings(column, index)
        elif pd.api.types.is_extension_array_dtype(column.dtype):
            out[name] = column.to_numpy(
                dtype=np.float64 if missing else np.dtype(f"{column.dtype.kind}{_width(column)}")
            )
        else:
            out[name] = column.to_numpy()
    return out


def _width(column: pd.Series) -> int:
    return 1 if column.dtype.kind == "b" else 8


def _strings(values: Iterable[Any], index: pd.Index) -> pd.Series:
    """Python strings, "" where missing; the dtype is stated, or pandas 3 would choose its own."""
    return pd.Series(["" if pd.isna(v) else str(v) for v in values], index=index, dtype=object)


def _text(index: pd.Index) -> NDArray[Any]:
    return np.array(["" if pd.isna(v) else str(v) for v in index], dtype=object)
