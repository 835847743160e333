"""Annotations as GeoJSON that QuPath (0.4 and later) opens: File > Import objects from file.

Coordinates are pixels of the full-resolution image with the origin at its upper left, as QuPath counts them; open the
image that the section refers to. Every location is a detection with its class, the class's colour, and its numbers as
measurements. Identifiers are made of section, location and name, so a file that is written again is the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from triglyph.storage import atomic_file

if TYPE_CHECKING:
    from triglyph.tissue.annotations import Annotation
    from triglyph.tissue.section import Section

CORNERS = 24
"""Of the polygon that a spot is drawn as: GeoJSON has no circle."""
_NAMESPACE = uuid.UUID("b7f2c2de-4b5a-5d0c-9a53-6b1f0e0f7a11")


def outlines_px(section: Section, *, image: str = "he") -> NDArray[np.float64]:
    """(n, corners + 1, 2) closed outlines of the locations at their true size, in level-0 pixels of an image.

    Raises
    ------
    SourceError
        The section has no such full-resolution image.
    """
    if section.info.location_shape == "square":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], dtype=np.float64)
    else:
        turn = np.linspace(0, 2 * np.pi, CORNERS + 1)
        turn[-1] = 0.0  # closed exactly
        corners = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    to_px = section.image_info(image).to_um.inverse()
    return to_px(section.centres_um[:, None, :] + corners * section.location_um / 2)


def features(section: Section, annotation: Annotation, palette: Mapping[str, str]) -> dict[str, Any]:
    """A FeatureCollection of the locations that have a label.

    Parameters
    ----------
    palette
        Label -> `#rrggbb`, of the classes and of `UNSURE`.
    """
    a = annotation
    rgb = {label: [int(c[i : i + 2], 16) for i in (1, 3, 5)] for label, c in palette.items()}
    outlines = np.round(outlines_px(section), 2)
    barcodes = section.table.obs_names.astype(str)
    out = []
    for i in np.flatnonzero(a.label != ""):
        measured = {f"probability: {c}": a.probability[i, k] for k, c in enumerate(a.classes)}
        measured |= {f"cosine: {c}": a.cosine[i, k] for k, c in enumerate(a.classes)}
        measured["margin"] = a.margin[i]
        if np.isfinite(a.distance[i]):
            measured |= {"distance from training": a.distance[i], "out of distribution": float(a.strange[i])}
        out.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{section.id}\n{barcodes[i]}\n{a.name}")),
                "geometry": {"type": "Polygon", "coordinates": [outlines[i].tolist()]},
                "properties": {
                    "objectType": "detection",
                    "name": barcodes[i],
                    "classification": {"name": a.label[i], "color": rgb[a.label[i]]},
                    "measurements": {k: round(float(v), 5) for k, v in measured.items()},
                },
            }
        )
    return {"type": "FeatureCollection", "features": out}


def write_geojson(path: Path, section: Section, annotation: Annotation, palette: Mapping[str, str]) -> None:
    """Write `features` of a section, atomically."""
    with atomic_file(path) as partial:
        text = json.dumps(features(section, annotation, palette), ensure_ascii=False, separators=(",", ":"))
        partial.write_text(text + "\n", encoding="utf-8")
