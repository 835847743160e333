"""How far a location is from what a model was trained on: the out-of-distribution flag.

Of the training sections' features before the head (`TrainedModel.pooled`), standardised, the mean and the covariance
(shrunk as Ledoit and Wolf 2004 say) are kept; the distance of a location is Mahalanobis's, divided by the root of the
number of features, so that it is about 1 for tissue like theirs. The threshold is a quantile of distances of training
locations, each from the others: patients are dealt into groups, and each group is measured from a mean and a covariance
that it had no part in. So a quantile of 0.99 flags about one location in a hundred of a *new* patient from where the
training patients came from, not of the very locations that were fitted.

It is stored with the run (`RUN/reference/<modality>/`): neither training sections nor their features are needed later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import ContractError, StorageError
from triglyph.storage import atomic_folder, read_json, write_json

Floats = NDArray[np.float64]

FORMAT = 1
MAX_ROWS = 20_000
"""Training locations that are used at most, the same number of each section."""
MAX_GROUPS = 10
STEPS = 1000
"""The distribution of distances is stored at this many steps."""
DEFINITION = (
    "Mahalanobis distance, over the root of their number, of the standardised features before the head from those of "
    "the training locations (covariance shrunk by Ledoit-Wolf)"
)


@dataclass(frozen=True)
class Reference:
    """The features of training locations, in short."""

    centre: Floats
    """(d,)"""
    spread: Floats
    """(d,) standard deviations, 1 where a feature does not vary."""
    whiten: Floats
    """(d, d) takes standardised features to such of unit covariance."""
    quantiles: Floats
    """(STEPS + 1,) distances of training locations, from the smallest to the largest."""
    about: dict[str, Any]
    """Encoder, sections, how the distances were taken."""

    def distance(self, features: NDArray[Any]) -> Floats:
        """(n,) of features (n, d)."""
        z = (np.asarray(features, dtype=np.float64) - self.centre) / self.spread
        return np.asarray(np.sqrt(np.square(z @ self.whiten).mean(axis=1)))

    def threshold(self, quantile: float) -> float:
        """The distance that this share of training locations does not exceed."""
        return float(np.interp(quantile, np.linspace(0, 1, STEPS + 1), self.quantiles))

    @classmethod
    def fit(
        cls, features: Sequence[NDArray[Any]], patients: Sequence[str], *, about: dict[str, Any], seed: int = 0
    ) -> Reference:
        """From the features (n, d) of each training section, and whose it is.

        Raises
        ------
        ContractError
            There are fewer than two locations.
        """
        most = max(2, MAX_ROWS // max(1, len(features)))
        rng = np.random.default_rng(seed)
        some = [
            np.asarray(f if len(f) <= most else f[np.sort(rng.choice(len(f), most, replace=False))], dtype=np.float64)
            for f in features
        ]
        rows = np.concatenate(some) if some else np.zeros((0, 1))
        if len(rows) < 2:
            raise ContractError(f"{len(rows)} training locations say nothing of what is usual")
        people = sorted(set(patients))
        # One patient alone is divided by section; one section alone cannot be, and its distances are from itself.
        apart = [people.index(p) for p in patients] if len(people) > 1 else list(range(len(some)))
        group = np.repeat(np.array(apart) % MAX_GROUPS, [len(f) for f in some])
        numbers = np.unique(group)
        if len(numbers) > 1:
            distances = np.empty(len(rows))
            for number in numbers:
                out = group == number
                distances[out] = _moments(rows[~out], about).distance(rows[out])
        else:
            distances = _moments(rows, about).distance(rows)
        how = "patients" if len(people) > 1 else "sections" if len(some) > 1 else "nothing"
        fitted = _moments(rows, {**about, "definition": DEFINITION, "left_out": how, "locations": len(rows)})
        quantiles = np.quantile(distances, np.linspace(0, 1, STEPS + 1))
        return cls(fitted.centre, fitted.spread, fitted.whiten, quantiles, fitted.about)

    # ---- on disk

    def save(self, folder: Path) -> None:
        """Write a new folder, whole or not at all."""
        with atomic_folder(folder) as partial:
            arrays = {"centre": self.centre, "spread": self.spread, "whiten": self.whiten, "quantiles": self.quantiles}
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array.astype(np.float32), allow_pickle=False)
            write_json(partial / "reference.json", {"format": FORMAT, **self.about})

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read what `save` wrote.

        Raises
        ------
        StorageError
            The folder is damaged or of another format.
        """
        about = read_json(folder / "reference.json")
        mend = "remove the folder, and annotate the cohort that the model was trained on"
        if about.pop("format", None) != FORMAT:
            raise StorageError("a reference of another format", where=folder, mend=mend)
        try:
            arrays = [
                np.load(folder / f"{name}.npy", allow_pickle=False).astype(np.float64)
                for name in ("centre", "spread", "whiten", "quantiles")
            ]
        except (ValueError, OSError) as error:
            raise StorageError(f"damaged ({error})", where=folder, mend=mend) from error
        centre, spread, whiten, quantiles = arrays
        return cls(centre, spread, whiten, quantiles, about)


def _moments(rows: Floats, about: dict[str, Any]) -> Reference:
    """Centre, spread and whitening of rows (n, d); no distances yet."""
    from sklearn.covariance import ledoit_wolf

    centre, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    covariance, _ = ledoit_wolf((rows - centre) / spread, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    # A feature that never varied has no variance even after shrinking when none of them has.
    values = np.maximum(values, 1e-6)
    return Reference(centre, spread, vectors / np.sqrt(values), np.zeros(0), about)
