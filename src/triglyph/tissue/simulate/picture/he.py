"""The H&E of a specimen: the one place where tissue, dye and artefacts come together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triglyph.tissue.simulate.picture.stain import Dye, paint, patient_dye
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream


def he_pixels(specimen: Specimen) -> tuple[NDArray[np.uint8], Dye]:
    """The section as pixels (side, side, 3), and the stain and scale they were made with.

    Pixel (i, j) covers the square from (j, i) x mpp to (j + 1, i + 1) x mpp of the section's true frame.
    """
    config, dye = specimen.config, patient_dye(specimen.config, specimen.patient)
    rng = stream(config.seed, "paint", *specimen.keys)
    return paint(config, specimen.tissue, dye, rng, artefacts=specimen.artefacts), dye
