"""What is asked for each class, in words: phrases, templates, and their vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from triglyph.cards import Frozen
from triglyph.configs import read_yaml, validated
from triglyph.errors import RecipeError
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
        if not path.is_file():
            raise RecipeError("there is no such file of prompts", where=path, mend="check the path")
        found = read_yaml(path, noun="file of prompts")
        return validated(cls, found if "classes" in found else {"classes": found}, where=path, noun="file of prompts")

    @field_validator("classes", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """`class:` alone stands for its own name, and one phrase needs no list."""
        if not isinstance(value, dict):
            return value
        return {k: () if v is None else (v,) if isinstance(v, str) else v for k, v in value.items()}

    @field_validator("templates")
    @classmethod
    def _one_gap(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [t for t in value if t.replace("{}", "", 1).count("{") or t.count("{}") != 1]:
            raise ValueError(f"{wrong[0]!r} has not one {{}} for the phrase")
        if not value:
            raise ValueError("there is no template")
        return value

    def sentences(self, label: str) -> list[str]:
        """All sentences of a class."""
        return [t.format(phrase) for t in self.templates for phrase in self.classes[label] or (label,)]


def class_vectors(
    embed_text: Callable[[list[str]], NDArray[Any]], prompts: Prompts, classes: Sequence[str]
) -> NDArray[np.float64]:
    """(classes, dim) unit vectors: the mean of the unit vectors of each class's sentences."""
    sentences = {c: prompts.sentences(c) for c in classes}
    every = [s for c in classes for s in sentences[c]]
    embedded = unit_rows(embed_text(every), what="prompts")
    bounds = np.cumsum([len(sentences[c]) for c in classes])[:-1]
    return unit_rows(np.stack([part.mean(axis=0) for part in np.split(embedded, bounds)]), what="prompts")
