"""What the figures see of a section: counts, places, labels and, for some, features of its pixels.

A `Slice` is made from a section on disk (`of_cohort`) or from a table in memory (`of_table`), so that the figures can
be taken on a simulated world before a single pixel is painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from triglyph.errors import ContractError, GeneError
from triglyph.metrics.expression import log1p_cp10k
from triglyph.metrics.result import Result

Floats = NDArray[np.float64]


@dataclass
class Slice:
    """One section in memory."""

    id: str
    patient: str
    block: str
    counts: sp.csr_matrix
    """(n, genes) raw."""
    symbols: tuple[str, ...]
    """Genes that were measured."""
    xy_um: Floats
    """(n, 2)"""
    labels: NDArray[np.str_]
    """(n,), "" where unknown."""
    features: Floats | None = None
    """(n, d) of the pixels around each location; column 0 is the mean of haematoxylin. NaN rows: no pixels."""
    core: tuple[str, ...] | None = None
    """The genes of a core panel, where the section says which they are."""

    @classmethod
    def of_table(cls, table: Any, *, id: str, patient: str, block: str = "", features: Floats | None = None) -> Slice:
        """From an AnnData with raw counts in `X`, `obsm["spatial"]` in µm and, where known, `obs["label"]`."""
        measured = np.flatnonzero(_column(table.var, "measured", default=True).astype(bool))
        symbols = np.asarray(table.var_names, dtype=str)[measured]
        labels = np.array([str(x).strip() for x in _column(table.obs, "label", default="")], dtype=np.str_)
        core = None
        if "panel" in table.var:
            core = tuple(np.asarray(table.var_names, dtype=str)[table.var["panel"].astype(str) == "core"])
        return cls(
            id=id,
            patient=patient,
            block=block or patient,
            counts=sp.csr_matrix(sp.csc_matrix(table.X)[:, measured], dtype=np.float64),
            symbols=tuple(symbols),
            xy_um=np.asarray(table.obsm["spatial"], dtype=np.float64)[:, :2],
            labels=labels,
            features=features,
            core=core or None,
        )

    @property
    def n(self) -> int:
        """Number of locations."""
        return len(self.xy_um)

    @cached_property
    def totals(self) -> Floats:
        """(n,) counts of each location over all measured genes."""
        return np.asarray(self.counts.sum(axis=1), dtype=np.float64).ravel()

    def of(self, genes: Sequence[str]) -> sp.csr_matrix:
        """(n, len(genes)) raw counts."""
        at = {symbol: i for i, symbol in enumerate(self.symbols)}
        return sp.csr_matrix(sp.csc_matrix(self.counts)[:, [at[g] for g in genes]])

    def logged(self, genes: Sequence[str]) -> sp.csr_matrix:
        """(n, len(genes)) log1p of counts per 10,000 of these genes."""
        return log1p_cp10k(self.of(genes))

    def rows(self, keep: NDArray[np.intp]) -> Slice:
        """Some of its locations."""
        return Slice(
            self.id,
            self.patient,
            self.block,
            self.counts[keep],
            self.symbols,
            self.xy_um[keep],
            self.labels[keep],
            None if self.features is None else self.features[keep],
            self.core,
        )


def of_cohort(
    path: Path, *, encoder: str | None, sections: Sequence[str] | None = None, array: bool = False
) -> list[Slice]:
    """The sections of a cohort's folder.

    Parameters
    ----------
    encoder
        Compute its features where a section has an image, once (`triglyph embed`); None leaves pixels alone.
    sections
        Ids; all unless given.
    array
        Places are the array coordinates that barcodes `<x>x<y>` state, in the array's own unit, as in published
        figures of her2st; otherwise measured centres in µm.
    """
    from triglyph.tissue.cohort import Cohort

    cohort = Cohort.open(path)
    chosen = cohort.ids if sections is None else list(sections)
    fingerprint = ""
    if encoder is not None:
        from triglyph.apply.embed import embed_cohort
        from triglyph.encoders import registry

        with_image = [s for s in chosen if cohort[s].has_image()]
        report = embed_cohort(cohort, registry.build(encoder), sections=with_image, device="cpu")
        if report.failed:
            raise ContractError(f"not embedded: {report.failed}", where=path)
        fingerprint = report.fingerprint
    out = []
    for name in chosen:
        section = cohort[name]
        features = None
        if fingerprint and section.embeddings.has(fingerprint):
            stored = section.embeddings.read(fingerprint)
            features = np.where(stored.present[:, None], np.asarray(stored.values, dtype=np.float64), np.nan)
        made = Slice.of_table(
            section.table, id=name, patient=section.patient, block=section.info.block, features=features
        )
        if array:
            made.xy_um = np.array([[float(v) for v in name.split("x")] for name in section.table.obs_names])
        out.append(made.rows(np.flatnonzero(made.totals > 0)))
    return out


def common_genes(slices: Sequence[Slice]) -> list[str]:
    """Symbols that all of them measured, sorted."""
    common = sorted(set.intersection(*(set(s.symbols) for s in slices))) if slices else []
    if not common:
        raise GeneError("the sections have no gene in common", where=[s.id for s in slices])
    return common


def neighbour_mean(values: Any, xy_um: Floats, k: int) -> Floats:
    """(n, columns) mean of `values` over the `k` nearest locations, the location itself included."""
    k = min(k, len(xy_um))
    near = NearestNeighbors(n_neighbors=k).fit(xy_um).kneighbors(xy_um, return_distance=False)
    ones = np.full(near.size, 1.0 / k)
    weights = sp.csr_matrix((ones, near.ravel(), np.arange(0, near.size + 1, k)), shape=(len(xy_um), len(xy_um)))
    out = weights @ values
    return np.asarray(out.toarray() if sp.issparse(out) else out)


def people_folds(slices: Sequence[Slice], *, folds: int = 8) -> list[tuple[list[Slice], list[Slice]]]:
    """Leave one patient out; above `folds` patients, that many groups of patients in turn."""
    patients = sorted({s.patient for s in slices})
    groups = [set(patients[i :: min(folds, len(patients))]) for i in range(min(folds, len(patients)))]
    return [([s for s in slices if s.patient not in g], [s for s in slices if s.patient in g]) for g in groups]


def row(
    figure: str, model: str, metric: str, value: float, *, group: str, patient: str, split: str, **more: Any
) -> Result:
    """A Result of the calibration; `fold` holds the patient that was tested."""
    return Result(
        task=figure,
        protocol="simulator-calibration/1",
        metric=metric,
        value=float(value) if np.isfinite(value) else None,
        model=model,
        role=more.pop("role", "baseline"),
        split=split,
        level=more.pop("level", "patient"),
        group=group,
        fold=patient,
        aggregation="per-section",
        **more,
    )


def _column(frame: Any, name: str, *, default: Any) -> NDArray[Any]:
    return frame[name].astype(object).to_numpy() if name in frame else np.full(len(frame), default, dtype=object)
