"""Sections and models of numpy alone, for the tests of the judge."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from triglyph.bench.contracts import Trial
from triglyph.bench.registry import PROTOCOLS

CLASSES = ("fat", "gland", "stroma")
OTHERWISE = {
    "genes-from-genes",
    "hescape-expression",
    "batch-effect",
    "hescape-mutation",
    "slide-classification",
    "stamp-dlpfc",
    "stamp-hbc",
}
EMBEDDINGS = [name for name, of in PROTOCOLS.items() if name not in OTHERWISE and of.needs_split]
"""Protocols that read one embedding, section by section."""
DIM = 16


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@dataclass
class FakeSection:
    """A square of locations in stripes of classes; counts follow a hidden state."""

    id: str
    patient: str
    side: int = 14
    seed: int = 0
    genes: int = 40
    unlabelled: tuple[int, ...] = ()
    captions: list[str] = field(default_factory=list)
    measured: np.ndarray | None = None

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, zlib.crc32(self.id.encode())])
        n = self.side**2
        grid = np.stack(np.meshgrid(np.arange(self.side), np.arange(self.side)), -1).reshape(-1, 2)
        self.centres_um = grid * 200.0 + 5.0
        kind = grid[:, 0] * len(CLASSES) // self.side
        self.labels = np.array(CLASSES, dtype=object)[kind]
        self.labels[list(self.unlabelled)] = ""
        centres = np.random.default_rng(7).normal(size=(len(CLASSES), DIM))
        self.state = centres[kind] + 0.7 * rng.normal(size=(n, DIM))
        loading = np.random.default_rng(8).normal(size=(DIM, self.genes))
        rate = np.exp(0.5 * self.state @ loading / np.sqrt(DIM) + np.linspace(-2, 2, self.genes))
        self.counts = sp.csr_matrix(rng.poisson(rate * 5))
        self.captions = self.captions or [f"{c} at {i}" for i, c in enumerate(np.array(CLASSES)[kind])]

    @property
    def table(self):
        return ad.AnnData(self.counts, obs=pd.DataFrame(index=[f"b{i}" for i in range(self.side**2)]))

    def expression(self):
        symbols = tuple(f"G{i:02d}" for i in range(self.genes))
        measured = np.ones(self.genes, bool) if self.measured is None else self.measured
        return self.counts, symbols, ("",) * self.genes, measured


class FakeModel:
    """Reads the hidden state with noise; its words are the centres of the classes."""

    def __init__(self, *, modalities=("image", "expression", "text"), noise=0.3, trained_on=(), absent=()):
        self.modalities, self.noise, self.training_sections = modalities, noise, trained_on
        self.absent = absent
        self.asked = []

    def embed(self, section, modality):
        rng = np.random.default_rng([zlib.crc32(section.id.encode()), zlib.crc32(modality.encode())])
        present = np.ones(len(section.centres_um), bool)
        present[list(self.absent)] = False
        if modality == "text":
            present &= np.array([bool(c) for c in section.captions])
            state = {}
            for c, s in zip(section.captions, section.state, strict=True):
                state.setdefault(c, s)
            values = np.stack([state[c] for c in section.captions])
        else:
            values = section.state + self.noise * rng.normal(size=section.state.shape)
        values = unit(values)
        values[~present] = np.nan
        return values, present

    pooled = embed

    def embed_text(self, texts):
        self.asked.append(list(texts))
        centres = np.random.default_rng(7).normal(size=(len(CLASSES), DIM))
        words = dict(zip(CLASSES, centres, strict=True))
        return unit(np.stack([next((v for w, v in words.items() if w in t), np.ones(DIM)) for t in texts]))


class RandomModel(FakeModel):
    """Knows nothing, differently for every seed."""

    def __init__(self, seed, **options):
        super().__init__(**options)
        self.seed = seed

    def embed(self, section, modality):
        key = [self.seed, zlib.crc32(section.id.encode()), zlib.crc32(modality.encode())]
        values = np.random.default_rng(key).normal(size=(len(section.centres_um), DIM))
        return unit(values), np.ones(len(values), bool)

    def embed_text(self, texts):
        return unit(
            np.stack([np.random.default_rng([self.seed, zlib.crc32(t.encode())]).normal(size=DIM) for t in texts])
        )


def trial(train=2, test=2, *, val=(), sections_each=1, **options):
    """`train` and `test` patients with `sections_each` sections."""
    sides = []
    for count, prefix in ((train, "train"), (test, "test")):
        sides.append(
            tuple(
                FakeSection(f"{prefix}{p}.{s}", f"{prefix}-patient{p}", **options)
                for p in range(count)
                for s in range(sections_each)
            )
        )
    patients = {s.id: s.patient for side in sides for s in side}
    return Trial(train=sides[0], test=sides[1], patients=patients, split="made", val=val)
