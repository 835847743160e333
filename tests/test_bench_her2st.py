"""The published reference figures on real tissue: stain and texture to expression, in the reference's own options."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from support import SHARED, needs_shared
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.features import Columns, Features, Position
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.ridge_retrieval import ridge_retrieval

SECTIONS = ("C2", "C3", "C4", "B4")


@dataclass
class Spots:
    """A section of her2st, without a reader."""

    id: str
    centres_um: np.ndarray
    counts: sp.csr_matrix
    symbols: tuple[str, ...]
    features: np.ndarray

    @property
    def patient(self):
        return self.id[0]

    def expression(self):
        return self.counts, self.symbols, ("",) * len(self.symbols), np.ones(len(self.symbols), bool)


class StainTexture(Features):
    """Features computed here, by the formula of the reference."""

    def features(self, section):
        return section.features, np.ones(len(section.features), bool)


def stain_texture(image, centres):
    """(n, 52): stain, colour and local binary patterns of 160 and 320 px windows at level 0."""
    from skimage.color import hed_from_rgb
    from skimage.feature import local_binary_pattern

    density = np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)  # of `rgb2hed`, for each grey level
    rows = []
    for x, y in centres:
        row = []
        for half in (80, 160):
            window = image[max(0, y - half) : y + half, max(0, x - half) : x + half]
            rgb = window.reshape(-1, 3).T
            hed = np.maximum(hed_from_rgb.T @ density[rgb], 0)
            row += [*hed.mean(1), *hed.std(1), *rgb.mean(1), *rgb.std(1), *np.percentile(hed[0], [5, 25, 75, 95])]
            patterns = local_binary_pattern(window.mean(2).astype("u1"), 8, 1, "uniform")
            row += [*np.bincount(patterns.astype(int).ravel(), minlength=10) / patterns.size]
        rows.append(row)
    return np.array(rows)


@pytest.fixture(scope="session")
def tissue(request):
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    folder = SHARED / "her2st"
    # Half a minute of texture for the same pixels: kept between runs.
    kept = request.config.cache.mkdir("her2st-stain-texture-1")
    made = {}
    for name in SECTIONS:
        with gzip.open(folder / "counts" / f"{name}.tsv.gz", "rt") as stream:
            counts = pd.read_csv(stream, sep="\t", index_col=0)
        spots = pd.read_csv(folder / "spots" / f"{name}_selection.tsv", sep="\t")
        spots.index = [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]
        spots = spots[spots.index.isin(counts.index)]
        centres = spots[["pixel_x", "pixel_y"]].to_numpy()
        path = kept / f"{name}.npy"
        if not path.exists():
            image = np.asarray(Image.open(folder / "images" / f"{name}.jpg"))
            np.save(path, stain_texture(image, centres.astype(int)))
        matrix = sp.csr_matrix(counts.loc[spots.index].to_numpy(dtype=np.float64))
        made[name] = Spots(name, centres * 0.688, matrix, tuple(counts.columns), np.load(path))
    return made


def trial(tissue, train, test):
    return Trial(
        train=tuple(tissue[s] for s in train),
        test=tuple(tissue[s] for s in test),
        patients={s: s[0] for s in SECTIONS},
        split="reference",
    )


def pearson(rows):
    return {r.group: r for r in rows if r.metric == "pearson" and r.aggregation == "per-section" and r.group != "all"}


@needs_shared
@pytest.mark.parametrize(
    ("name", "n_genes", "c4", "b4"),
    [
        ("haematoxylin mean", 50, 0.297, 0.073),
        ("stain and texture", 50, 0.465, 0.143),
        ("haematoxylin mean", 250, 0.238, 0.176),
        ("stain and texture", 250, 0.350, 0.206),
    ],
)
def test_stain_and_texture_give_the_reference_figures(tissue, name, n_genes, c4, b4):
    source = StainTexture() if name == "stain and texture" else Columns(StainTexture(), (0,))
    protocol = Expression(standardise="per-section", n_genes=n_genes)
    rows = protocol.run(Subject(name, source, role="baseline"), trial(tissue, ("C2", "C3"), ("C4", "B4")))
    found = pearson(rows)
    assert found["C4"].value == pytest.approx(c4, abs=0.005)
    assert found["B4"].value == pytest.approx(b4, abs=0.005)
    assert (found["C4"].level, found["B4"].level) == ("within-patient", "patient")
    assert found["B4"].n_genes == n_genes
    if (name, n_genes) == ("stain and texture", 50):
        assert found["B4"].ci_unit == "spatial-block"
        assert found["B4"].ci_low == pytest.approx(0.08, abs=0.03)
        assert found["B4"].ci_high == pytest.approx(0.19, abs=0.03)


@needs_shared
def test_one_section_of_another_patient_teaches_next_to_nothing(tissue):
    rows = Expression(standardise="per-section").run(
        Subject("stain and texture", StainTexture(), role="baseline"), trial(tissue, ("B4",), ("C4",))
    )
    assert pearson(rows)["C4"].value == pytest.approx(0.038, abs=0.005)


@needs_shared
def test_ridge_retrieval_beats_chance_within_the_patient_and_states_its_gallery(tissue):
    made = trial(tissue, ("C2", "C3"), ("C4", "B4"))
    for features in (StainTexture(), Position()):
        subject = ridge_retrieval(features, made, name="ridge", standardise="per-section")
        rows = [
            r
            for r in Retrieval().run(subject, made)
            if (r.metric, r.direction, r.group) == ("recall@10", "image->expression", "C4")
        ]
        assert rows[0].n_gallery == len(tissue["C4"].features)
        assert rows[0].value > 1.5 * rows[0].chance
