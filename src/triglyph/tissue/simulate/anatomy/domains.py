"""Domains: where each kind of tissue lies in a section.

Every domain has a score, the highest wins, and offsets are fitted until each takes its share of the tissue. Scores
carry what pathology knows of the whole: tumour forms masses, necrosis lies within them, lymphocytes gather along their
front, glands and fat keep away, connective tissue is what lies between. Fronts are smooth in some places; in others
they reach along the fibres as fingers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.fields import Draw, Field, step
from triglyph.tissue.simulate.knobs.anatomy import Anatomy
from triglyph.tissue.simulate.knobs.names import DOMAINS

# Length scale of a domain's own field, relative to `Anatomy.domain_um`.
_SIZE = dict(zip(DOMAINS, (1.0, 0.8, 0.7, 1.3, 0.85, 1.6, 0.8), strict=True))
# Weight of a domain's own field; where it is low the domain fills what others leave.
_OWN = dict(zip(DOMAINS, (0.5, 0.8, 0.8, 0.3, 0.9, 0.9, 0.8), strict=True))
# How a domain follows the field of tumour masses.
_MASS = dict(zip(DOMAINS, (1.3, 0.35, 0.0, 0.0, -0.6, -0.8, 0.95), strict=True))
_FRONT = 0.9
"""Lymphocytes at the front of tumour masses."""
_BANDS = 4096
_FINGERS = {"invasive cancer": 0.75, "adipose tissue": 0.55}


@dataclass(frozen=True)
class Fibres:
    """The course of fibres; their level lines."""

    phase_um: Field
    """Grows by about 1 for each µm across the fibres."""
    angle: Field
    """Direction of the fibres, radians."""

    def bands(self, rng: np.random.Generator, width_um: float, bend_um: Field | float = 0.0) -> Field:
        """Bands of about `width_um` along the fibres: values of a standard normal, the same all along a fibre.

        Parameters
        ----------
        bend_um
            Moves the bands against the fibres, so that they begin, end and branch.
        """
        # A fixed number of draws, laid from phase 0: adjacent sections, whose phases differ little, get the same bands.
        noise = rng.standard_normal(_BANDS)
        for _ in range(3):
            noise = (noise + np.roll(noise, 1) + np.roll(noise, -1)) / 3
        noise = ((noise - noise.mean()) / noise.std()).astype(np.float32)
        # Three rounds of a mean of three leave bands about four steps wide.
        place = (self.phase_um + bend_um) * np.float32(4.0 / width_um)
        index = np.floor(place).astype(np.int32)
        part = place - index
        return noise[index % _BANDS] * (1 - part) + noise[(index + 1) % _BANDS] * part


def fibres(anatomy: Anatomy, draw: Draw, course: float) -> Fibres:
    """Fibres as level lines of a bent plane: parallel nearby, wavy, turning over some 300 µm.

    Parameters
    ----------
    course
        Their mean direction, radians.
    """
    side = round(anatomy.side_um / anatomy.grid_um)
    axis = np.arange(side, dtype=np.float32) * np.float32(anatomy.grid_um)
    phase = axis[:, None] * np.float32(np.cos(course)) - axis[None, :] * np.float32(np.sin(course))
    phase = phase + draw("fibres", (800.0, 150.0), (420.0, 60.0), (110.0, 14.0), (30.0, 2.6), change=0.1)
    down, across = np.gradient(phase)
    # The fibre runs along the level line, at a right angle to the gradient.
    return Fibres(phase, np.arctan2(across, -down).astype(np.float32))


def lay_out(
    anatomy: Anatomy,
    draw: Draw,
    course: Fibres,
    shares: NDArray[np.float64],
    cover: Field,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Soft domains, (len(DOMAINS), side, side), summing to 1.

    Parameters
    ----------
    shares
        (len(DOMAINS),) share of the tissue each domain takes; 0: nowhere.
    cover
        1 under tissue; shares are of it.
    """
    present = np.flatnonzero(shares > 0)
    under = cover > 0.5
    mass = draw("tumour masses", (2.6 * anatomy.domain_um, 1.0))
    invasive = float(shares[DOMAINS.index("invasive cancer")])
    front = np.exp(-(((mass - np.quantile(mass[under][::17], 1 - max(invasive, 0.02))) / 0.45) ** 2))
    # Where the front is ragged it follows bands of fibres, elsewhere it pushes and is smooth.
    ragged = step(draw("ragged fronts", (1.3 * anatomy.domain_um, 1.0)), 0.2, 1.2)
    bend = draw("bend of fingers", (110.0, 22.0))
    coarse, fine = anatomy.wobble_um
    scores = []
    for number in present:
        name = DOMAINS[number]
        score = draw(f"domain: {name}", (_SIZE[name] * anatomy.domain_um, _OWN[name]), (coarse, 0.2), (fine, 0.07))
        score = score + np.float32(_MASS[name]) * mass
        if name == "immune infiltrate":
            score += np.float32(_FRONT) * front
        if name in _FINGERS:
            score += np.float32(_FINGERS[name]) * ragged * course.bands(rng, 55.0, bend)
        scores.append(score)
    score = np.stack(scores)
    wanted = shares[present] / shares[present].sum()
    offsets = np.log(wanted)
    inside = score[:, under][:, ::17]
    for _ in range(60):
        won = np.bincount((inside + offsets[:, None]).argmax(0), minlength=len(present)) / inside.shape[1]
        offsets += 0.25 * (np.log(wanted) - np.log(np.maximum(won, 1e-3)))
    score += offsets[:, None, None].astype(np.float32)
    # Scores differ by about 1 over `domain_um / 2`, hence the slope that makes the passage `boundary_um` wide.
    score *= np.float32(anatomy.domain_um / anatomy.boundary_um)
    score -= score.max(0)
    np.exp(score, out=score)
    score /= score.sum(0)
    domains = np.zeros((len(DOMAINS), *score.shape[1:]), dtype=np.float32)
    domains[present] = score
    return domains
