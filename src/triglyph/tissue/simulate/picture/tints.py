"""Tints: how much haematoxylin and eosin each compartment takes up, and how it is textured, on the anatomy's grid.

The painter enlarges these maps to pixels. States show here as far as their dial lets them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.ndimage import gaussian_filter

from triglyph.tissue.simulate.anatomy.tissue import Tissue, visible
from triglyph.tissue.simulate.fields import Field
from triglyph.tissue.simulate.knobs.names import DOMAINS
from triglyph.tissue.simulate.knobs.simulation import Simulation

_EDGE_UM = 9.0


@dataclass(frozen=True)
class Tints:
    """Maps that the painter enlarges."""

    solid: Field
    """1 in tissue; 0 on glass, in lumens, fat droplets and clefts."""
    haematoxylin: Field
    """Optical density outside nuclei."""
    eosin: Field
    fibre: Field
    """Share of the eosin that lies in fibres."""
    loose: Field
    """How wide the clefts between fibres are."""
    phase_um: Field
    """Grows across fibres."""
    coarse: Field
    """Strength of granular texture."""


def tints(config: Simulation, tissue: Tissue, beyond: int) -> Tints:
    """The maps of a tissue, `beyond` grid points longer: images are a little larger than the frame."""
    part, change = tissue.compartments, config.stain.state
    fibrosis = visible(config, tissue.states, "fibrosis")
    oedema = visible(config, tissue.states, "oedema")
    hypoxic = np.exp(change * visible(config, tissue.states, "hypoxia"))
    tumour = np.maximum(part.nest, part.duct)
    inflamed = tissue.domains[DOMAINS.index("immune infiltrate")] * (1 - tumour)
    glands = tissue.domains[DOMAINS.index("breast glands")]
    necrosis = part.debris
    stroma = np.clip(part.stroma - necrosis - inflamed - part.fat, 0, 1)
    # Collagen is dense and pink, what lies between is pale and a little blue; around acini it is paler still.
    collagen = part.collagen * (1 - 0.35 * glands)
    ground = (0.10 + 0.17 * collagen) * np.exp(0.8 * change * fibrosis - 1.2 * change * oedema)
    # Stains saturate.
    ground = 0.40 * np.tanh(ground / 0.40)
    eosin = (
        stroma * ground
        + part.rim * 0.10
        + (part.nest * 0.19 + part.duct * 0.20) * hypoxic
        + part.gland * 0.21
        + inflamed * (0.12 - 0.03 * part.centre)
        + necrosis * 0.29
        + part.wall * 0.30
        + part.membrane * 0.13
    )
    haematoxylin = (
        (part.nest * 0.16 + part.duct * 0.10) / hypoxic
        + part.gland * 0.11
        + inflamed * (0.11 - 0.04 * part.centre)
        + necrosis * 0.10
        + stroma * (0.038 - 0.012 * collagen)
        + part.membrane * 0.015
    )
    solid = tissue.cover * (1 - np.clip(part.lumen, 0, 1)) * (1 - part.cleft)
    # Cut edges curl up and dry: they take up more of both stains.
    edge = np.clip(1.0 - gaussian_filter(tissue.cover, _EDGE_UM / tissue.step_um), 0, 0.5) * 2
    eosin *= 1 + 0.45 * edge
    haematoxylin = haematoxylin * (1 + 0.3 * edge) + 0.10 * edge * (1 - part.fat)
    made = Tints(
        solid=solid,
        haematoxylin=np.clip(haematoxylin, 0, None),
        eosin=np.clip(eosin, 0.02, None),
        fibre=stroma * (0.85 - 0.25 * collagen) + part.wall * 0.3,
        loose=stroma * np.clip(0.15 - 0.18 * collagen - 0.04 * fibrosis + 0.12 * oedema, 0, 0.75),
        phase_um=part.fibre_phase_um,
        coarse=0.08 + 0.10 * tumour + 0.22 * necrosis + 0.08 * inflamed,
    )
    grow = (0, max(beyond, 0))
    return Tints(*(np.pad(getattr(made, f.name), (grow, grow), mode="edge").astype(np.float32) for f in fields(made)))
