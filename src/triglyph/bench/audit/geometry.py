"""Overlapping tiles and touching neighbours, from coordinates.

Two locations can be compared where they lie in one frame: in one section, or in two sections whose records name the
same image by its hash; then centres are mapped into that image, and measured there in µm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from triglyph.bench.audit.case import Case, Sides
from triglyph.bench.audit.findings import Sheet
from triglyph.bench.audit.kinds import Severity

Points = NDArray[np.float64]
SLACK = 0.02
"""Centres are known to about 2 % of a pitch."""
MOST = 0.5
"""A random division of spots leaves most test spots beside a training spot; blocks of tissue only their borders."""
SAME_PLACE = 0.9
"""With this share of locations in place, two sections of one image are one section."""


class Meeting(NamedTuple):
    """Locations of both sides in one frame."""

    seen: str
    test: str
    seen_um: Points
    test_um: Points
    shared_image: str
    """Name of the image that is the frame; "" for the section's own frame."""


def check_geometry(case: Case, sheet: Sheet) -> None:
    """`overlapping-tiles`, `neighbours-on-both-sides`; by shared images `slide-on-both-sides`, `same-section-twice`."""
    if not any(case.info(s) for s in case.sections):
        for name in ("overlapping-tiles", "neighbours-on-both-sides"):
            sheet.unchecked(name, "the sections do not record the size of a location, nor their images")
        return
    without = [s for s in case.sections if not getattr(case.info(s), "images", ())]
    if without and case.split.level != "within-section":
        what = f"{len(without)} sections have no image, such as {without[0]}: no frame in common with others"
        sheet.unchecked("overlapping-tiles", what)
    sheet.checked("overlapping-tiles", "neighbours-on-both-sides")
    for sides in case.sides:
        for meeting in _meetings(case, sides):
            _judge(case, sheet, sides, meeting)


def _meetings(case: Case, sides: Sides) -> Iterator[Meeting]:
    for section in sides.test:
        if section in sides.seen and section in (sides.fold.test_locations or {}) and case.placed(section):
            centres = np.asarray(case.cohort[section].centres_um, dtype=np.float64)
            seen, test = (case.rows(sides, section, test=side) for side in (False, True))
            if len(seen) and len(test):
                yield Meeting(section, section, centres[seen], centres[test], "")
    images = {s: {i.sha256: i for i in getattr(case.info(s), "images", ())} for s in case.sections}
    for a, b in sides.pairs():
        for sha in images[a].keys() & images[b].keys():
            seen_um, test_um = (
                images[s][sha].to_um.inverse()(case.cohort[s].centres_um) * images[s][sha].mpp for s in (a, b)
            )
            yield Meeting(a, b, seen_um, test_um, images[b][sha].name)
            break


def _judge(case: Case, sheet: Sheet, sides: Sides, m: Meeting) -> None:
    info = case.info(m.test)
    tree = cKDTree(m.seen_um)
    euclid = tree.query(m.test_um)[0]
    # A window is square along the axes, and overlaps by the larger of the two distances.
    square = tree.query(m.test_um, p=np.inf)[0]
    own = square if info.location_shape == "square" else euclid
    overlap = own < info.location_um * (1 - SLACK)
    sizes = f"locations of {info.location_um:g} µm"
    if case.tile_um is None:
        sheet.unchecked("overlapping-tiles", "windows of images: none is known, name the model or --embedding")
    else:
        overlap |= square < case.tile_um * (1 - SLACK)
        sizes += f", windows of {case.tile_um:g} µm"
    pitch = info.pitch_um or _pitch(m.test_um)
    near = euclid < pitch * (1 + 2 * SLACK)
    both = tuple(dict.fromkeys((m.test, m.seen)))
    who = f"section {m.test}" if m.seen == m.test else f"section {m.test} (tested) and {m.seen} (trained on)"
    frame = f", on the same image {m.shared_image!r}" if m.shared_image else ""
    same = m.seen != m.test and (euclid < 0.1 * info.location_um).mean() >= SAME_PLACE
    if same:
        case.copies.add((m.seen, m.test))
        what = f"{who} lie at the same place{frame}"
        sheet.find("same-section-twice", what, message="sections lie at the same place", sections=both, fold=sides.name)
    elif overlap.any():
        what = f"{who}: {_of(overlap)} test locations overlap a training location{frame} ({sizes})"
        message = f"test locations overlap a training location ({sizes})"
        sheet.find("overlapping-tiles", what, message=message, sections=both, fold=sides.name)
    if not same and near.any():
        what = f"{who}: {_of(near)} test locations lie next to a training location (pitch {pitch:.0f} µm){frame}"
        severity: Severity = "fail" if near.mean() >= MOST else "advise"
        message = "test locations lie next to a training location"
        sheet.find("neighbours-on-both-sides", what, message=message, sections=both, fold=sides.name, severity=severity)
    if m.shared_image and case.split.level == "patient" and case.patients[m.seen] != case.patients[m.test]:
        what = f"sections {m.seen} (trained on) and {m.test} (tested) lie on the same image {m.shared_image!r}"
        message = "sections of both sides lie on the same image"
        sheet.find("slide-on-both-sides", what, message=message, sections=both, fold=sides.name)


def _pitch(centres_um: Points) -> float:
    """Median distance to the nearest other location, µm."""
    return float(np.median(cKDTree(centres_um).query(centres_um, k=2)[0][:, 1])) if len(centres_um) > 1 else 0.0


def _of(mask: NDArray[np.bool_]) -> str:
    return f"{int(mask.sum()):,} of {len(mask):,}"
