"""An AnnData of somebody else as a table of ours: raw counts, symbols with Ensembl ids, plain columns.

What has no place in the contract (`raw`, `uns`, further layers and embeddings) is left out and said so.
"""

from __future__ import annotations

import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from triglyph.errors import ContractError, SourceError
from triglyph.tissue.checks import storable_name
from triglyph.tissue.readers.base import Notes
from triglyph.tissue.readers.counts import Counts, one_column_per_symbol

_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{6,})(\.\d+)?$")
_ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "ensembl", "ensembl_ids")
_SYMBOL_COLUMNS = ("feature_name", "gene_name", "gene_symbol", "gene_symbols", "symbol")
_OURS = ("region", "instance_id")


def open_anndata(path: Path) -> ad.AnnData:
    """The AnnData in an `.h5ad` file or a `.zarr` folder.

    Raises
    ------
    SourceError
        It is missing, truncated, or no AnnData.
    """
    mend = "copy the file again, or write it anew with anndata"
    if not path.exists():
        raise SourceError("the table is not there", where=path, mend="check the path")
    try:
        return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"not readable as an AnnData ({first})", where=path, mend=mend) from error


def our_table(found: ad.AnnData, *, layer: str | None, notes: Notes, where: object) -> ad.AnnData:
    """Counts, genes and columns of `found`; `obsm["spatial"]` is the caller's to set.

    Parameters
    ----------
    found
        Any AnnData.
    layer
        The layer that holds raw counts; None for `X`.

    Raises
    ------
    ContractError
        There are no counts where they should be.
    """
    if layer is not None and layer not in found.layers:
        raise ContractError(
            f"there is no layer {layer!r}", where=where, mend=f"the table has {', '.join(found.layers) or 'none'}"
        )
    matrix = found.layers[layer] if layer is not None else found.X
    if matrix is None:
        raise ContractError("X is empty", where=where, mend="name the layer of raw counts with --counts-layer")
    symbols, ids = gene_names(found.var, notes)
    given = Counts(sp.csr_matrix(matrix), found.obs_names.to_numpy(dtype=object), symbols, ids)
    counts = one_column_per_symbol(given, notes)
    var = pd.DataFrame({"ensembl_id": counts.ensembl_ids}, index=pd.Index(counts.symbols, dtype=object))
    if "measured" in found.var:
        measured = pd.Series(found.var["measured"].to_numpy(), index=symbols).groupby(level=0).max()
        var["measured"] = measured.loc[counts.symbols.tolist()].to_numpy()
    obs = plain_columns(found.obs, notes)
    left = [f"layers[{k!r}]" for k in found.layers if k != layer] + (["X"] if layer is not None else [])
    left += ["raw"] if found.raw is not None else []
    left += [f"obsm[{k!r}]" for k in found.obsm] + [f"uns[{k!r}]" for k in found.uns]
    if left:
        notes.add(f"left out, beside counts and columns: {', '.join(left)}")
    return ad.AnnData(X=counts.matrix, obs=obs, var=var)


def positions(found: ad.AnnData, key: str, *, where: object) -> np.ndarray:
    """(n, 2) float64 of `obsm[key]`.

    Raises
    ------
    ContractError
        It is missing or is not two columns of numbers.
    """
    if key not in found.obsm:
        raise ContractError(
            f"obsm[{key!r}] is missing",
            where=where,
            mend=f"name the positions with --spatial-key; obsm has {', '.join(found.obsm) or 'nothing'}",
        )
    try:
        values = np.asarray(found.obsm[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ContractError(f"obsm[{key!r}] is not numbers ({error})", where=where, mend="give x, y") from None
    if values.ndim != 2 or values.shape[1] != 2:
        raise ContractError(f"obsm[{key!r}] has shape {values.shape}, not (n, 2)", where=where, mend="give x, y")
    return values


def gene_names(var: pd.DataFrame, notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and Ensembl ids (without version, "" where unknown)."""
    names = np.array([str(v) for v in var.index], dtype=object)
    own = _ensembl(names)
    if np.mean(own != "") > 0.5:  # the table is indexed by Ensembl id
        column = next((c for c in _SYMBOL_COLUMNS if c in var), None)
        if column is None:
            notes.add("genes are named by Ensembl id; no column holds symbols, so the ids stand in for them")
            return names, own
        text = np.array(["" if pd.isna(v) else str(v) for v in var[column]], dtype=object)
        notes.add(f"genes are named by Ensembl id; symbols are taken from var[{column!r}]")
        return np.where(text == "", names, text), own
    column = next((c for c in _ID_COLUMNS if c in var), None)
    return names, _ensembl(var[column].astype(object).to_numpy()) if column is not None else own


def _ensembl(values: np.ndarray) -> np.ndarray:
    matches = (_ENSEMBL.match(str(v)) for v in values)
    return np.array([m.group(1) if m else "" for m in matches], dtype=object)


def plain_columns(obs: pd.DataFrame, notes: Notes) -> pd.DataFrame:
    """`obs` under names the store can hold."""
    out = pd.DataFrame(index=pd.Index([str(i) for i in obs.index], dtype=object))
    renamed, taken = [], set()
    for name in obs.columns:
        if name in _OURS:
            notes.add(f"left out obs column {name!r}, a name of the store's own")
            continue
        new = str(name)
        if not storable_name(new):
            new = "".join(c if c.isalnum() or c in "_-." else "_" for c in new).lstrip("_") or "column"
        while new.lower() in taken:
            new += "_"
        taken.add(new.lower())
        if new != name:
            renamed.append(f"{name!r} -> {new!r}")
        out[new] = obs[name].to_numpy()
    if renamed:
        notes.add(f"renamed obs columns: {', '.join(renamed)}")
    return out
