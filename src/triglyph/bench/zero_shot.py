"""`zero-shot`: do words alone tell which locations of a held-out section are of a class?

A class is its prompts: each template filled with each of its phrases, embedded, averaged, brought to unit length. The
score of a location is the cosine with its class. Prompts are data and default to the class names as they stand; which
classes are asked for is read off the labels of the test sections, since those define the task. Nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from triglyph.bench.classes import AUROC_AGGREGATIONS, AUROC_METRIC, Scored, known_labels, score_rows
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.protocol import Protocol, ProtocolCard
from triglyph.bench.rows import Rows
from triglyph.cards import Frozen
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.result import Result
from triglyph.metrics.retrieval import unit_rows


class Prompts(Frozen):
    """What is asked for each class.

    `classes` maps a label, as in the sections, to its phrases; an empty list stands for the label itself. Each of
    `templates` holds one `{}` for the phrase.
    """

    classes: dict[str, tuple[str, ...]]
    templates: tuple[str, ...] = ("{}",)

    @classmethod
    def read(cls, path: Path) -> Prompts:
        """From YAML or JSON: `{class: [phrases]}`, or the two fields by name."""
        import yaml

        if not path.is_file():
            raise RecipeError("there is no such file of prompts", where=path, mend="check the path")
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RecipeError(f"not readable as YAML: {error}", where=path, mend="correct the file") from None
        if not isinstance(found, dict):
            raise RecipeError("prompts are a mapping of classes to phrases", where=path, mend="write `class: [phrase]`")
        return cls.model_validate(found if "classes" in found else {"classes": found})

    def sentences(self, label: str) -> list[str]:
        """All sentences of a class."""
        return [t.format(phrase) for t in self.templates for phrase in self.classes[label] or (label,)]


def class_vectors(subject: Subject, prompts: Prompts, classes: Sequence[str]) -> NDArray[np.float64]:
    """(classes, dim) unit vectors: the mean of the unit vectors of each class's sentences."""
    sentences = {c: prompts.sentences(c) for c in classes}
    every = [s for c in classes for s in sentences[c]]
    embedded = unit_rows(subject.source.embed_text(every), what="prompts")
    bounds = np.cumsum([len(sentences[c]) for c in classes])[:-1]
    return unit_rows(np.stack([part.mean(axis=0) for part in np.split(embedded, bounds)]), what="prompts")


class ZeroShot(Protocol):
    """AUROC of locations ranked by words."""

    name: ClassVar[str] = "zero-shot"
    task: ClassVar[str] = "zero-shot"
    has_null: ClassVar[bool] = True

    prompts: Prompts | None = None
    """None: the names of the labels that the test sections have."""

    def card(self) -> ProtocolCard:
        return ProtocolCard(
            name=self.name,
            version=self.version,
            task=self.task,
            summary="locations of held-out sections ranked by their cosine with the words for a class",
            fitted={},
            metrics={"auroc": AUROC_METRIC},
            aggregations=AUROC_AGGREGATIONS,
            constants=self.constants(),
        )

    def run(self, subject: Subject, trial: Trial) -> list[Result]:
        rows = Rows.start(self, subject, trial)
        targets = [m for m in ("image", "expression") if m in subject.modalities]
        if "text" not in subject.modalities or not targets:
            raise ContractError(
                f"zero-shot needs text and one more modality, {subject.name} has "
                f"{', '.join(subject.modalities) or 'none'}",
                mend="judge a model that was trained with a text tower",
            )
        labels = {s.id: known_labels(s) for s in trial.test}
        there = sorted({str(label) for of in labels.values() for label in of} - {""})
        if not there:
            raise ContractError(
                "no test section has labels", where=f"split {trial.split!r}", mend="add a column `label` to the tables"
            )
        prompts = self.prompts or Prompts(classes=dict.fromkeys(there, ()))
        classes = sorted(prompts.classes)
        if not set(classes) & set(there):
            raise ContractError(
                f"no prompt is for a label that is there: prompts for {', '.join(classes)}",
                mend=f"the labels are {', '.join(there)}",
            )
        vectors = class_vectors(subject, prompts, classes)
        out: list[Result] = []
        for target in targets:
            scored = []
            for section in trial.test:
                values, present = subject.embed(section, target)
                known = np.flatnonzero(present & (labels[section.id] != ""))
                if len(known):
                    scores = unit_rows(values[known]) @ vectors.T
                    truth = labels[section.id][known][:, None] == np.array(classes)[None, :]
                    scored.append(Scored(section, known, scores, truth))
            if scored:
                out += score_rows(rows, scored, classes=classes, direction=f"text->{target}")
        return out

    def constants(self) -> dict[str, Any]:
        fields = super().constants()
        return {**fields, "prompts": fields["prompts"] or "label names"}
