"""Cheap subjects that stand in every table, protocol by protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from triglyph.bench.contracts import Embedder, Subject, Trial
from triglyph.bench.expression.predictors import (
    AlignedPosition,
    CoreDepth,
    CoreRidge,
    MinMAE,
    ShuffledPairs,
    TrainingMean,
    block_of,
)
from triglyph.bench.expression.protocol import Expression, GenesFromGenes
from triglyph.bench.features import Alone, Columns, Depth, Position
from triglyph.bench.hescape.retrieval import HescapeRetrieval
from triglyph.bench.hest.protocol import HestBenchmark
from triglyph.bench.protocol import LABEL_TASKS, Protocol
from triglyph.bench.representations import NEIGHBOURLY, REPRESENTATIONS, Places
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.ridge_retrieval import ridge_retrieval
from triglyph.bench.slides.bags import BagProtocol, bag_baselines
from triglyph.models.fused import reads

PLACES = ("positions z-scored within each test section",)
DEPTH = ("depth of the test locations is the input",)
ALIGNED = ("training sections laid onto each test section by its stain",)


def beside(
    protocol: Protocol,
    trial: Trial,
    subject: Subject | None,
    stain_texture: Embedder | None,
    *,
    places: Places = "um",
) -> list[Subject]:
    """What stands beside a subject in a protocol's table.

    Parameters
    ----------
    subject
        What is judged; None where nothing is.
    stain_texture
        Features of `image` whose column 0 is the haematoxylin mean; None where the sections have no image.
    places
        What representations of expression call near: µm, or places on the array.
    """
    placed = all(np.isfinite(s.centres_um).all() for s in (*trial.train, *trial.test))
    if isinstance(protocol, GenesFromGenes):
        return core_baselines(placed=placed)
    if isinstance(protocol, BagProtocol):
        return bag_baselines(protocol, stain_texture)
    if isinstance(protocol, Retrieval | HescapeRetrieval):
        both = subject is None or {"image", "expression"} <= set(subject.modalities)
        return retrieval_baselines(trial, stain_texture, placed=placed) if both else []
    if protocol.task in LABEL_TASKS:
        modality = getattr(protocol, "modality", "image")
        return label_baselines(trial, modality, stain_texture, placed=placed, places=places)
    if isinstance(protocol, Expression | HestBenchmark):
        others = expression_baselines(trial, stain_texture, placed=placed, modality=protocol.modality)
        return [*others, *shuffled_pairs(protocol, trial, subject)]
    return []


def expression_baselines(
    trial: Trial, stain_texture: Embedder | None, *, placed: bool, modality: str = "image"
) -> list[Subject]:
    """Subjects for protocols that predict expression from features."""
    subjects = [
        Subject("mean", TrainingMean(), role="baseline"),
        Subject("library size", Depth(modality), role="baseline", transductive=DEPTH),
    ]
    if placed:
        subjects.append(Subject("position", Position(modality=modality), role="baseline", transductive=PLACES))
    if stain_texture is None:
        return subjects
    if modality == "image":
        subjects.append(Subject("haematoxylin mean", Columns(stain_texture, (0,)), role="baseline"))
        subjects.append(Subject("stain-texture", stain_texture, role="baseline"))
    blocks = {block_of(s) for s in trial.train} - {""}
    if placed and any(block_of(s) in blocks for s in trial.test):
        aligned = AlignedPosition(stain_texture)
        subjects.append(Subject("position, aligned", aligned, role="baseline", transductive=ALIGNED))
    return subjects


def shuffled_pairs(protocol: Protocol, trial: Trial, subject: Subject | None) -> list[Subject]:
    """The control of a subject that has features: the same, fitted on pairs that mean nothing."""
    if subject is None or getattr(protocol, "modality", "image") not in subject.modalities:
        return []
    source = ShuffledPairs(subject.source, trial, seed=protocol.seed)
    return [replace(subject, name=f"{subject.name}: shuffled pairs", source=source, role="control")]


def core_baselines(*, placed: bool) -> list[Subject]:
    """Subjects for `genes-from-genes`."""
    subjects = [
        Subject("mean", TrainingMean(), role="baseline"),
        Subject("Min-MAE", MinMAE(), role="baseline"),
        Subject("library size (core)", CoreDepth(), role="baseline"),
        Subject("ridge", CoreRidge(), role="baseline"),
    ]
    return [*subjects, Subject("ridge + neighbours", CoreRidge(neighbours=7), role="baseline")] if placed else subjects


def label_baselines(
    trial: Trial, modality: str, stain_texture: Embedder | None, *, placed: bool, places: Places
) -> list[Subject]:
    """Subjects for protocols that read labels off an embedding of `modality`; of a fusion, those of either part."""
    subjects: list[Subject] = []
    parts = reads(modality)
    if placed:
        subjects.append(Subject("position", Position(modality=modality), role="baseline", transductive=PLACES))
    if "image" in parts and stain_texture is not None:
        subjects.append(Subject("stain-texture", _as(modality, stain_texture, of="image"), role="baseline"))
    if "expression" in parts:
        subjects.append(Subject("library size", Depth(modality=modality), role="baseline"))
        fitted = (
            representation(trial, places=places, role="baseline")
            for name, representation in REPRESENTATIONS.items()
            if placed or name not in NEIGHBOURLY
        )
        subjects += [replace(s, source=_as(modality, s.source, of="expression")) for s in fitted]
    return subjects


def _as(modality: str, source: Embedder, *, of: str) -> Embedder:
    return source if modality == of else Alone(source, of, modality)


def retrieval_baselines(trial: Trial, stain_texture: Embedder | None, *, placed: bool = True) -> list[Subject]:
    """Subjects for `retrieval` between image and expression."""
    subjects: list[Subject] = []
    if placed:
        subjects.append(ridge_retrieval(Position(), trial, name="position + ridge", transductive=PLACES))
    if stain_texture is not None:
        subjects.append(ridge_retrieval(stain_texture, trial, name="stain-texture + ridge"))
    return subjects
