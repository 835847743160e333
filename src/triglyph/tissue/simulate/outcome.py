"""Labels of patients: a mutation, and a survival time with censoring, both driven by what the tissue is made of.

    mutation      log odds  = log odds at the mean composition  +  `Labels.mutation` x score
    survival      Weibull, log hazard = log hazard at the mean composition + `Labels.hazard` x score
    last contact  uniform over a span chosen so that the expected share of censored patients is `Labels.censored`

A score is a stated sum of shares of domains, shares of cells and mean states of the patient, standardised over a
reference population of the same world. The cohort does not enter: patient 7 is the same in a cohort of 7 and of 60.
Everything is computed from the patient's plan, which needs no tissue; sections follow the plan closely.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from triglyph.storage import atomic_file
from triglyph.tissue.simulate.cohort import patient_id
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS, SUBTYPES
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.people import person
from triglyph.tissue.simulate.streams import stream

FEATURES = (
    *(f"domain {name}" for name in DOMAINS),
    *(f"cells {name}" for name in CELL_TYPES),
    *(f"state {name}" for name in STATES),
)
"""A patient's composition: shares of the tissue, shares of all cells, mean states."""
MUTATION = {
    "cells tumour": 0.8,
    "domain cancer in situ": 0.5,
    "domain immune infiltrate": -0.5,
    "state oestrogen response": 0.4,
}
"""Weights of the standardised features that drive the mutation (as of PIK3CA in luminal tumours)."""
HAZARD = {
    "domain invasive cancer": 0.7,
    "domain necrosis": 0.6,
    "cells T cell": -0.6,
    "state proliferation": 0.5,
    "state hypoxia": 0.3,
}
"""Weights of the standardised features that drive the hazard."""
MUTATED = 0.38
"""Probability of the mutation at the mean composition."""
MEDIAN_MONTHS = 70.0
"""Median survival at the mean composition."""
SHAPE = 1.2
"""Shape of the Weibull hazard: it grows slowly with time."""
_REFERENCE = 100_000
"""Index of the first person of the reference population; no cohort reaches it."""
_PEOPLE = 600
_QUANTILES = (np.arange(400) + 0.5) / 400


def composition(config: Simulation, patient: int) -> NDArray[np.float64]:
    """(len(FEATURES),) composition of a patient over their sections, as planned.

    Shares of cells are expected ones: the domains' shares times the domains' mean densities.
    """
    who = person(config, patient)
    blocks = [config.block_of(patient, section) for section in range(config.sections_of(patient))]
    shares = np.mean([who.shares(block) for block in blocks], axis=0)
    density = np.array([[config.anatomy.cells_per_mm2[d].get(c, 0.0) for c in CELL_TYPES] for d in DOMAINS])
    # Summed row by row: the same bytes whatever the number of BLAS threads.
    cells = (shares[:, None] * density).sum(0)
    return np.concatenate([shares, cells / cells.sum(), who.state_shift])


@dataclass(frozen=True)
class Clinic:
    """What the labels of every patient of a world are measured against."""

    config: Simulation

    @cached_property
    def _reference(self) -> NDArray[np.float64]:
        """(people, features) composition of the reference population."""
        return np.stack([composition(self.config, _REFERENCE + i) for i in range(_PEOPLE)])

    def _sum(self, features: NDArray[np.float64], weights: dict[str, float]) -> NDArray[np.float64]:
        """(n,) weighted sum of (n, features), each standardised; one that does not vary in this world adds nothing."""
        total = np.zeros(len(features))
        for name, weight in weights.items():
            column = FEATURES.index(name)
            spread = float(self._reference[:, column].std())
            if spread > 1e-9:
                total += weight * (features[:, column] - self._reference[:, column].mean()) / spread
        return total

    @cached_property
    def _scales(self) -> dict[str, tuple[float, float]]:
        sums = {name: self._sum(self._reference, w) for name, w in (("mutation", MUTATION), ("hazard", HAZARD))}
        return {name: (float(values.mean()), float(values.std())) for name, values in sums.items()}

    def score(self, features: NDArray[np.float64], label: str) -> NDArray[np.float64]:
        """(n,) score of `mutation` or `hazard` for compositions (n, features): mean 0, deviation 1 over the world."""
        mean, spread = self._scales[label]
        raw = self._sum(features, MUTATION if label == "mutation" else HAZARD) - mean
        return raw / spread if spread > 1e-9 else np.zeros(len(features))

    def survival(self, months: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of living longer than `months` at a hazard score."""
        return np.asarray(np.exp(-np.log(2) * (months / MEDIAN_MONTHS) ** SHAPE * np.exp(self._hazard * score)))

    @property
    def _hazard(self) -> float:
        return self.config.labels.hazard

    @cached_property
    def last_contact_months(self) -> float:
        """Longest time anybody is followed; times of last contact are uniform below it. Infinite: none is censored."""
        wanted = self.config.labels.censored
        if wanted == 0:
            return float("inf")
        scores = self.score(self._reference, "hazard")

        def excess(log_months: float) -> float:
            followed = np.exp(log_months) * _QUANTILES
            return float(self.survival(followed[:, None], scores[None]).mean()) - wanted

        return float(np.exp(brentq(excess, np.log(1e-6), np.log(1e9), xtol=1e-10)))

    def record(self, patient: int) -> dict[str, str | int | float]:
        """The row of a patient in `clinical.csv`; see `patient_record`."""
        config, features = self.config, composition(self.config, patient)
        who, lots = person(config, patient), stream(config.seed, "outcome", patient).random(2)
        mutation, hazard = (float(self.score(features[None], label)[0]) for label in ("mutation", "hazard"))
        log_odds = np.log(MUTATED / (1 - MUTATED)) + config.labels.mutation * mutation
        probability = float(1 / (1 + np.exp(-log_odds)))
        # The inverse of `survival` at a uniform lot; 1 - lot is never 0.
        lived = MEDIAN_MONTHS * (-np.log2(1 - lots[0]) * np.exp(-self._hazard * hazard)) ** (1 / SHAPE)
        followed = self.last_contact_months * lots[1] if np.isfinite(self.last_contact_months) else np.inf
        return {
            "patient": patient_id(patient),
            "subtype": SUBTYPES[who.subtype],
            "stain_site": f"site-{who.stain_site + 1}",
            "chemistry_site": f"site-{who.chemistry_site + 1}",
            "mutation": int(stream(config.seed, "mutation", patient).random() < probability),
            "months": _months(min(lived, followed)),
            "event": int(lived <= followed),
            "truth_mutation_score": mutation,
            "truth_mutation_probability": probability,
            "truth_hazard_score": hazard,
            "truth_months": _months(lived),
            **{f"truth_{name.replace(' ', '_')}": float(v) + 0.0 for name, v in zip(FEATURES, features, strict=True)},
        }


def patient_record(config: Simulation, patient: int) -> dict[str, str | int | float]:
    """Labels of a patient and the truth behind them.

    Returns
    -------
    dict
        `patient`, `subtype`, `stain_site`, `chemistry_site`; `mutation` (1: mutated); `months` to death or to the last
        contact, and `event` (1: death was seen, 0: censored). Then the truth: both scores, the probability of the
        mutation, the months until death had nobody been censored, and every feature of the composition.
    """
    return Clinic(config).record(patient)


def write_clinical(config: Simulation, patients: int, path: Path) -> Path:
    """Write `clinical.csv`: one row for each of the first `patients` patients, as `patient_record` gives it.

    Raises
    ------
    StorageError
        The disk is full or read-only.
    """
    clinic = Clinic(config)
    table = pd.DataFrame([clinic.record(patient) for patient in range(patients)])
    with atomic_file(Path(path)) as partial:
        partial.write_bytes(table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    return Path(path)


def _months(value: float) -> float:
    """To a hundredth, above 0: a time of 0 is refused by most survival models."""
    return max(round(float(value), 2), 0.01)
