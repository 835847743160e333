"""Cohorts of numpy alone for the tests of the audit: clean ones, and ways to spoil them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from triglyph.tissue.frames import Affine
from triglyph.tissue.split import Fold, Split

CLASSES = ("fat", "gland", "stroma")
PATIENTS, GENES = 8, 60
PITCH_UM = 100.0


@dataclass
class Store:
    """Embeddings of one section, under one name."""

    fingerprint: str
    values: np.ndarray

    def has(self, fingerprint):
        return fingerprint == self.fingerprint

    def read(self, fingerprint):
        return SimpleNamespace(values=self.values, present=np.ones(len(self.values), bool), card={})


@dataclass
class Made:
    """One section; change it with `dataclasses.replace`."""

    id: str
    patient: str
    centres_um: np.ndarray
    counts: sp.csr_matrix
    labels: np.ndarray
    captions: list[str]
    symbols: tuple[str, ...]
    ensembl_ids: tuple[str, ...]
    images: tuple = ()
    source: dict = field(default_factory=dict)
    embeddings: Store | None = None
    platform: str = "made"

    @property
    def info(self):
        return SimpleNamespace(
            platform=self.platform,
            location_um=55.0,
            location_shape="circle",
            pitch_um=PITCH_UM,
            images=self.images,
            source=self.source,
        )

    @property
    def table(self):
        return SimpleNamespace(obs_names=[f"b{i}" for i in range(len(self.labels))])

    def expression(self):
        return self.counts, self.symbols, self.ensembl_ids, np.ones(len(self.symbols), bool)


@dataclass
class MadeCohort:
    sections: dict[str, Made]
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    name: str = "made"

    @property
    def ids(self):
        return list(self.sections)

    @property
    def patients(self):
        return {s: m.patient for s, m in self.sections.items()}

    @property
    def manifest(self):
        table = pd.DataFrame({"patient": self.patients})
        for name, values in self.columns.items():
            table[name] = [values.get(s, "") for s in table.index]
        return table

    def __getitem__(self, section):
        return self.sections[section]

    def with_(self, *changed, columns=None):
        """With sections replaced or added, and columns added."""
        sections = {**self.sections, **{m.id: m for m in changed}}
        return replace(self, sections=sections, columns={**self.columns, **(columns or {})})

    def renamed(self, patients):
        """With other patients."""
        return self.with_(*(replace(self[s], patient=p) for s, p in patients.items()))


def rng(*keys):
    return np.random.default_rng([zlib.crc32(str(k).encode()) for k in keys])


def section(name, patient, *, side=14, noise="", depth=15.0):
    """A square of locations in the classes of a smooth map, the same map and profile in all sections of a patient."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)
    of = rng(patient)
    seeds = of.random((9, 2)) * side
    kinds = of.permutation(np.arange(9) % len(CLASSES))
    kind = kinds[((grid[:, None] - seeds[None]) ** 2).sum(-1).argmin(1)]
    base = rng("base").normal(size=GENES) * 0.7
    of_class = rng("classes").normal(size=(len(CLASSES), GENES)) * 0.8
    of_class -= np.log(np.exp(base + of_class).sum(1, keepdims=True))  # depth is the same in all classes
    own = of.normal(size=GENES) * 0.6
    rate = np.exp(base + of_class[kind] + own)
    counts = rng(name, noise).poisson(rate / rate.sum(1, keepdims=True) * depth * GENES)
    words = rng(name, "words").choice(["densely cellular", "with few cells", "moderately cellular"], len(grid))
    return Made(
        id=name,
        patient=patient,
        centres_um=grid * PITCH_UM,
        counts=sp.csr_matrix(counts),
        labels=np.array(CLASSES, dtype=object)[kind],
        captions=[f"tissue, {w}" for w in words],
        symbols=tuple(f"G{i:02d}" for i in range(GENES)),
        ensembl_ids=tuple(f"ENSG{i:011d}" for i in range(GENES)),
    )


def clean():
    """Eight patients with two sections each."""
    made = [section(f"P{p}-S{s}", f"P{p}") for p in range(PATIENTS) for s in range(2)]
    return MadeCohort(
        {m.id: m for m in made},
        columns={
            "block": {m.id: f"{m.patient}-B1" for m in made},
            "slide": {m.id: f"slide of {m.patient}" for m in made},
            "donor": {m.id: f"donor {m.patient}" for m in made},
        },
    )


def split(cohort, *, patients=("P5", "P6", "P7"), level="patient", **fold):
    """Tests the sections whose names are of `patients`; trains on the others."""
    held_out = tuple(s for s in cohort.ids if s.split("-")[0] in patients)
    train = tuple(s for s in cohort.ids if s not in held_out)
    return Split(name="main", level=level, folds=(Fold(**{"train": train, "test": held_out, **fold}),))


def image(sha="aa", *, offset_um=(0.0, 0.0), mpp=0.5):
    """A record of an image that the section's centres lie on, `offset_um` from its corner."""
    to_um = Affine.scale(mpp, origin_um=(-offset_um[0], -offset_um[1]))
    return SimpleNamespace(name="he", role="full", sha256=sha, to_um=to_um, mpp=mpp)


def spots(cohort, sections, share=0.05):
    """Section -> a random share of its barcodes, as the field holds spots out."""
    return {
        s: tuple(
            f"b{i}" for i in rng(s, "spots").choice(len(cohort[s].labels), int(len(cohort[s].labels) * share), False)
        )
        for s in sections
    }
