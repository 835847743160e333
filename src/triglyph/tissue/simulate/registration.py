"""Registration: how far a location's stated centre lies from where its molecules came from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import RecipeError
from triglyph.tissue.simulate.fields import sample, smooth_noise
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.streams import stream

_BEND_UM = 900.0
"""Length scale of the smooth departure from a rigid shift."""
_STEP_UM = 10.0
_STANDARD_DEVIATIONS = 5.0
"""Locations are put off the image in about one section of a million where the room is this many of them."""


def registration_error(
    config: Simulation, patient: int, section: int, centres_um: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, 2) µm from the true centre of each location to the one that is stated.

    A shift of the whole section, of root mean square `People.registration_um` over sections, and a smooth bend of root
    mean square `People.registration_bend_um` over the section.
    """
    people, rng = config.people, stream(config.seed, "registration", patient, section)
    error = np.tile(people.registration_um / np.sqrt(2) * rng.standard_normal(2), (len(centres_um), 1))
    if people.registration_bend_um:
        side = int(np.ceil(config.anatomy.side_um / _STEP_UM))
        for axis in range(2):
            bend = sample(smooth_noise(rng, side, _STEP_UM, _BEND_UM), centres_um, _STEP_UM)
            error[:, axis] += people.registration_bend_um / np.sqrt(2) * bend
    return error


def check_registration(config: Simulation) -> None:
    """Refuse a registration error that could put locations off the image.

    Raises
    ------
    RecipeError
        Five standard deviations of the error along one axis exceed the distance that centres keep from the edge.
    """
    people, spots = config.people, config.spots
    room_um = spots.margin_um + spots.diameter_um / 2
    spread_um = float(np.hypot(people.registration_um, people.registration_bend_um) / np.sqrt(2))
    if _STANDARD_DEVIATIONS * spread_um > room_um:
        raise RecipeError(
            f"an error of {spread_um:.3g} µm along each axis may put locations off the image: their centres keep "
            f"{room_um:g} µm from its edge, and {_STANDARD_DEVIATIONS:g} times the error is more",
            where=f"simulation {config.name!r}, people.registration_um and people.registration_bend_um",
            mend=f"lower them, or raise spots.margin_um by {_STANDARD_DEVIATIONS * spread_um - room_um:.3g}",
        )
