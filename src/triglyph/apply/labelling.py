"""Labels in plain words: a location is of the class whose words lie closest to it.

Two kinds of scores are given of every class. The *cosine* is as the model has it. The *probability* is the softmax of
the cosines, scaled as training scaled them; after a calibration (see `triglyph.metrics.calibration`) it is the softmax
of the calibrated scores. The label is the class of the highest probability, the first by order among equal ones.

A calibration weighs all classes alike and then expects each as often as the root of its share in training says: half
way between "all alike" and "as in training". It is fitted on labelled locations of the sections that the model was
trained on, never on what is annotated, and is a file: fitted once, it serves cohorts that have no label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from triglyph.apply.prompts import Prompts, class_vectors
from triglyph.apply.reference import Reference
from triglyph.apply.trained import TrainedModel
from triglyph.cards import Frozen
from triglyph.configs import near, validated
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.calibration import Calibration, fit_calibration
from triglyph.metrics.retrieval import unit_rows
from triglyph.storage import read_json, write_json
from triglyph.tissue.annotations import UNSURE, Annotation
from triglyph.tissue.section import Section

Floats = NDArray[np.float64]
Target = Literal["image", "expression"]


class Abstain(Frozen):
    """When a location is left undecided: `UNSURE` instead of its class."""

    by: Literal["probability", "margin"]
    """`probability`: the highest one, of calibrated scores; `margin`: it less the second highest."""
    below: float

    @classmethod
    def parse(cls, text: str, *, calibrated: bool) -> Abstain:
        """`probability<0.6` or `margin<0.1`.

        Raises
        ------
        RecipeError
            Neither, a number outside 0 to 1, or a probability where nothing is calibrated.
        """
        found = re.fullmatch(r"\s*(probability|margin)\s*<\s*([0-9.]+(?:e-?[0-9]+)?)\s*", text)
        mend = "write --abstain 'probability<0.6' or --abstain 'margin<0.1'"
        try:
            below = float(found[2]) if found else float("nan")
        except ValueError:
            below = float("nan")
        if found is None or not 0 < below <= 1:
            raise RecipeError(f"not understood: {text!r}", where="--abstain", mend=mend)
        if found[1] == "probability" and not calibrated:
            raise RecipeError(
                "what is not calibrated is no probability that a limit can be set to",
                where="--abstain",
                mend="calibrate (--calibration fit), or set a limit to the margin",
            )
        return cls(by="probability" if found[1] == "probability" else "margin", below=below)


class FittedClass(Frozen):
    """The calibrated score of a class is `scale` x cosine + `offset`, how often it is expected among the latter."""

    scale: float
    offset: float
    locations: int
    """Labelled training locations of the class."""


class LabelCalibration(Frozen):
    """A calibration as it is saved: of one model, one modality, and the very words that it was fitted with."""

    format: Literal[1] = 1
    model: str
    """Digest of the release."""
    modality: Target
    prompts: Prompts
    classes: dict[str, FittedClass]
    sections: tuple[str, ...]
    patients: tuple[str, ...]

    def apply(self, cosine: Floats) -> Floats:
        """(n, classes) calibrated scores of cosines (n, classes), columns as in `classes`."""
        fitted = list(self.classes.values())
        return Calibration(np.array([f.scale for f in fitted]), np.array([f.offset for f in fitted]))(cosine)

    def save(self, path: Path) -> None:
        """As JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path, *, model: str, modality: Target, prompts: Prompts) -> LabelCalibration:
        """What `save` wrote, for the model, modality and prompts that it will be used with.

        Raises
        ------
        ContractError
            It was fitted with others.
        """
        found = validated(cls, read_json(path), where=path, noun="calibration")
        wrong = [
            what
            for what, same in (
                ("another model", found.model == model),
                (f"{found.modality}, not {modality}", found.modality == modality),
                ("other classes, phrases or templates", found.prompts == prompts),
            )
            if not same
        ]
        if wrong:
            raise ContractError(
                f"the calibration was fitted with {' and '.join(wrong)}",
                where=path,
                mend="use what it was fitted with, or fit another (--calibration fit)",
            )
        return found


@dataclass(frozen=True)
class Labelling:
    """All that is settled before a section is opened: what is asked, of which model, how answers are told."""

    model: TrainedModel
    name: str
    modality: Target
    prompts: Prompts
    vectors: Floats
    """(classes, D) unit vectors of the words for each class."""
    scale: float
    """What cosines are multiplied by where nothing is calibrated: the model's learnt scale."""
    about: dict[str, Any]
    calibration: LabelCalibration | None = None
    abstain: Abstain | None = None
    reference: Reference | None = None
    threshold: float = float("inf")
    """A location that is farther than this from the reference is strange."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order in which they were asked for."""
        return tuple(self.prompts.classes)

    def annotate(self, section: Section) -> Annotation:
        """The answers for a section; locations without the modality have none."""
        cosine, present = cosines(self.model, section, self.modality, self.vectors)
        score = cosine * self.scale if self.calibration is None else self.calibration.apply(cosine)
        probability = np.full_like(cosine, np.nan)
        probability[present] = softmax(score[present], axis=1)
        label = np.full(len(cosine), "", dtype=object)
        label[present] = np.array(self.classes, dtype=object)[probability[present].argmax(axis=1)]
        distance = np.full(len(cosine), np.nan)
        if self.reference is not None and present.any():
            distance[present] = self.reference.distance(self.model.pooled(section, self.modality)[0][present])
        found = Annotation(
            name=self.name,
            classes=self.classes,
            label=label,
            cosine=cosine,
            probability=probability,
            distance=distance,
            strange=np.greater(distance, self.threshold, out=np.zeros(len(distance), dtype=bool), where=present),
            about=self.about,
        )
        if self.abstain is not None:
            told = found.best if self.abstain.by == "probability" else found.margin
            label[present & (told < self.abstain.below)] = UNSURE
        return found


def asked(labels: Sequence[str]) -> Prompts:
    """Prompts of labels as a user gives them: names of classes, or one YAML or JSON file of classes with synonyms.

    Raises
    ------
    RecipeError
        Fewer than two classes, one given twice or blank, or one whose name is taken.
    """
    files = [label for label in labels if Path(label).suffix.lower() in (".yaml", ".yml", ".json")]
    if files and len(labels) > 1:
        raise RecipeError(f"{files[0]} is a file, and stands alone", where="--labels", mend="give one file, or names")
    names = [label.strip() for label in labels]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise RecipeError(f"given twice: {', '.join(twice)}", where="--labels", mend="give each class once")
    prompts = Prompts.read(Path(files[0])) if files else Prompts(classes=dict.fromkeys(names, ()))
    if blank := [c for c, phrases in prompts.classes.items() if not all(p.strip() for p in (c, *phrases))]:
        raise RecipeError(f"a class or phrase is blank: {blank[0]!r}", where="--labels", mend="give words")
    if UNSURE in prompts.classes:
        raise RecipeError(
            f"{UNSURE!r} is what a location is called that was not decided", where="--labels", mend="use another name"
        )
    if len(prompts.classes) < 2:
        raise RecipeError(
            f"{len(prompts.classes)} class: every location would be of it",
            where="--labels",
            mend="give what else there is, too: --labels tumour stroma",
        )
    return prompts


def target_of(model: TrainedModel, wanted: Target | None) -> Target:
    """What of a location is held against the words: its image where the model reads images, unless said otherwise.

    Raises
    ------
    ContractError
        The model reads no text, or not the modality that is wanted.
    """
    if "text" not in model.modalities:
        raise ContractError(
            f"the model reads {' and '.join(model.modalities)}, and no words",
            where="--model",
            mend="annotate with a model that was trained with a text tower",
        )
    if wanted is None:
        return "image" if "image" in model.modalities else "expression"
    if wanted not in model.modalities:
        raise ContractError(
            f"the model does not read {wanted}",
            where="--modality",
            mend=f"it reads {' and '.join(m for m in model.modalities if m != 'text')}",
        )
    return wanted


def logit_scale(model: TrainedModel, modality: Target) -> float:
    """The scale that training put on cosines of the pair; of the pair that text was trained in, where it was another.

    (A model that was bridged to text through a third modality never scaled the pair it is asked for.)
    """
    trained = [f"{a}-{b}" for a, b in model.alignment.config.active_pairs]
    pair = f"{modality}-text"
    own = pair if pair in trained else next(p for p in trained if p.endswith("-text"))
    return model.alignment.logit_scale(own)


def vectors_of(model: TrainedModel, prompts: Prompts) -> Floats:
    """(classes, D) unit vectors of the classes of `prompts`."""
    return class_vectors(model.embed_text, prompts, list(prompts.classes))


def cosines(
    model: TrainedModel, section: Section, modality: Target, vectors: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, classes) cosines of a section's locations with unit vectors (classes, D), NaN where absent; present (n,)."""
    values, present = model.embed(section, modality)
    out = np.full((len(values), len(vectors)), np.nan)
    out[present] = unit_rows(values[present]) @ vectors.T
    return out, present


def calibrate(
    model: TrainedModel, sections: Sequence[Section], *, digest: str, modality: Target, prompts: Prompts
) -> LabelCalibration:
    """Fit a calibration on the labels of sections that the model was trained on.

    Raises
    ------
    ContractError
        A class has no labelled location.
    """
    vectors, names = vectors_of(model, prompts), list(prompts.classes)
    scores, labels, used = [], [], []
    for section in sorted(sections, key=lambda s: s.id):
        known = np.array([str(label).strip() for label in section.labels], dtype=object)
        if not np.isin(known, names).any():
            continue
        cosine, present = cosines(model, section, modality, vectors)
        rows = present & np.isin(known, names)
        scores.append(cosine[rows])
        labels.append(known[rows])
        used.append(section)
    found = np.concatenate(labels) if labels else np.zeros(0, dtype=object)
    if missing := [c for c in names if not (found == c).any()]:
        there = sorted({str(label).strip() for s in sections for label in s.labels} - {""})
        raise ContractError(
            f"no training location is labelled {', '.join(missing)}{near(missing[0], there)}",
            where="--calibration fit",
            mend=f"training labels are {', '.join(there) or 'none'}: name the classes so (their phrases may be any), "
            "or annotate without --calibration",
        )
    codes = np.array([names.index(c) for c in found], dtype=np.intp)
    sizes = np.bincount(codes, minlength=len(names))
    fitted = fit_calibration(np.concatenate(scores), codes).expecting(sizes / len(codes))
    return LabelCalibration(
        model=digest,
        modality=modality,
        prompts=prompts,
        classes={
            c: FittedClass(scale=float(fitted.scale[i]), offset=float(fitted.offset[i]), locations=int(sizes[i]))
            for i, c in enumerate(names)
        },
        sections=tuple(s.id for s in used),
        patients=tuple(sorted({s.patient for s in used})),
    )
