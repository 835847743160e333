"""The report of a trained model on held-out sections: losses, retrieval, zero-shot maps, queries, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from triglyph.metrics.result import Result
from triglyph.report import figures, tables
from triglyph.report.html import Part, Picture, write_html

if TYPE_CHECKING:
    from triglyph.apply.trained import TrainedModel
    from triglyph.tissue.section import Section

RETRIEVAL = ("retrieval", "image->expression", "recall@10", "per-section")
ZERO_SHOT = ("zero-shot", "text->image", "auroc", "macro")
KEYS = (
    RETRIEVAL,
    ("retrieval", "expression->image", "recall@10", "per-section"),
    ("retrieval", "image->text", "recall@10", "per-section"),
    ZERO_SHOT,
    ("zero-shot", "text->expression", "auroc", "macro"),
    ("linear-probe", "", "auroc", "macro"),
    ("expression", "image->expression", "pearson", "per-section"),
)


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    model: TrainedModel,
    sections: Sequence[Section],
    results: Sequence[Result],
    log: Path,
    prompts: Mapping[str, Sequence[str]],
    queries: Sequence[str],
    tiles: int = 7,
) -> Path:
    """Write one self-contained HTML file.

    Parameters
    ----------
    sections
        Held-out sections with an image; the first is the one that maps are drawn of.
    log
        `log.jsonl` of the run.
    prompts
        Class -> sentences, as the zero-shot protocol used them.
    queries
        Free text to search the held-out sections with.
    """
    method = {key: row for key in KEYS if (row := find(results, *key, role="method")) is not None}
    facts = [(f"{row.value:.2f}", f"{key[0]}: {key[1]}, {key[2]} ({key[3]})") for key, row in method.items()][:4]
    parts = [
        Part(
            "Training",
            "The contrastive loss over the pairs that each batch held.",
            [Picture(figures.losses(curves(log)), "Each pair's loss and their weighted mean, by training step.")],
        ),
        Part(
            "Retrieval",
            "Given one location's image, find its expression among all locations of the same held-out section, and "
            "so on for every direction. The grey band is what the same heads reach when the pairs are shuffled.",
            [Picture(figures.retrieval(results), "Dots are held-out sections, bars their mean.")],
        ),
        _zero_shot(model, sections[0], results, prompts),
        _queries(model, sections, queries, tiles),
        Part(
            "Results",
            "Patients are the unit. With so few of them nothing is claimed to be significant: each one's value is "
            "printed, and intervals are over blocks of tissue.",
            [
                tables.summary(results, KEYS),
                tables.by_patient(results, [key[:3] for key in (RETRIEVAL, *KEYS[1:])]),
            ],
        ),
    ]
    return write_html(path, title=title, lead=lead, facts=facts, parts=parts)


def find(
    results: Sequence[Result], task: str, direction: str, metric: str, aggregation: str, *, role: str
) -> Result | None:
    """The row over all held-out sections, or None."""
    for r in results:
        if (r.task, r.direction, r.metric, r.aggregation) == (task, direction, metric, aggregation) and (
            r.group == "all" and r.role == role
        ):
            return r
    return None


def curves(log: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Loss name -> (steps, values) of a `log.jsonl`."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        for name, value in row["loss"].items():
            steps, values = found.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(value)
    return found


def class_scores(
    model: TrainedModel, section: Section, prompts: Mapping[str, Sequence[str]]
) -> tuple[list[str], NDArray[np.float64]]:
    """Classes, and the (n, classes) similarity of each location's image to each class's mean prompt; NaN: no image."""
    classes = list(prompts)
    vectors = []
    for name in classes:
        mean = model.embed_text(list(prompts[name])).mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    values, present = model.embed(section, "image")
    scores = np.full((len(values), len(classes)), np.nan)
    scores[present] = values[present] @ np.stack(vectors).T
    return classes, scores


def _zero_shot(
    model: TrainedModel, section: Section, results: Sequence[Result], prompts: Mapping[str, Sequence[str]]
) -> Part:
    classes, scores = class_scores(model, section, prompts)
    aurocs = {name: _section_auroc(scores[:, i], section.labels == name) for i, name in enumerate(classes)}
    picture = figures.zero_shot_map(section, truth=section.labels, scores=scores, classes=classes, aurocs=aurocs)
    return Part(
        "Zero-shot annotation",
        "Classes are named in words alone; the model has seen no label. Each location's image is compared with the "
        "mean of a class's prompts.",
        [Picture(picture, f"Section {section.id}, patient {section.patient}, who was not trained on.")],
    )


def _section_auroc(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    from triglyph.metrics.ranking import auroc

    known = np.isfinite(scores)
    value = float(auroc(scores[known][:, None], truth[known][:, None])[0])
    return None if np.isnan(value) else value


def _queries(model: TrainedModel, sections: Sequence[Section], texts: Sequence[str], tiles: int) -> Part:
    wanted = model.embed_text(list(texts))
    per_section = []
    for section in sections:
        values, present = model.embed(section, "image")
        scores = np.full((len(values), len(texts)), np.nan)
        scores[present] = values[present] @ wanted.T
        per_section.append(scores)
    window_um = 1.6 * sections[0].location_um
    pictures = []
    for q in range(len(texts)):
        ranked = sorted(
            (
                (float(s[row, q]), i, int(row))
                for i, s in enumerate(per_section)
                for row in np.flatnonzero(~np.isnan(s[:, q]))
            ),
            key=lambda hit: (-hit[0], hit[1:]),
        )[:tiles]
        shown = []
        for _, i, row in ranked:
            reader = sections[i].image()
            shown.append(reader.read(sections[i].centres_um[row], window_um, 160))
            reader.close()
        pictures.append(shown)
    figure = figures.queries(sections[0], texts=texts, scores=per_section[0], windows=pictures, window_um=window_um)
    return Part(
        "Search in plain words",
        "Where each query points in one held-out section, and the closest tiles of all held-out sections.",
        [Picture(figure, "Brighter is closer. Tiles are ranked over every location of the held-out patients.")],
    )
