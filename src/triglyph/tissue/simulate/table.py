"""The table of a specimen: counts, words and labels that a study would have, and beside them the truth that none has.

What starts with `truth_` no method may read; the judge uses it for ceilings. The names of its columns are in
`section.info.source`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.states import STATES
from triglyph.tissue.simulate.language import held_out_captions, section_caption, write_captions
from triglyph.tissue.simulate.locations import area_mm2
from triglyph.tissue.simulate.molecules.bins import bin_table
from triglyph.tissue.simulate.molecules.counts import draw_counts
from triglyph.tissue.simulate.molecules.programs import NICHES
from triglyph.tissue.simulate.molecules.surroundings import surrounding_shares
from triglyph.tissue.simulate.molecules.transcripts import panel
from triglyph.tissue.simulate.picture.artefacts import ARTEFACTS
from triglyph.tissue.simulate.registration import registration_error
from triglyph.tissue.simulate.streams import stream

if TYPE_CHECKING:
    from triglyph.tissue.simulate.specimen import Specimen

TRUTH_COLUMNS: dict[str, tuple[str, ...]] = {
    "truth_composition": CELL_TYPES,
    "truth_domains": DOMAINS,
    "truth_states": STATES,
    "truth_niches": tuple(NICHES),
    "truth_surroundings": CELL_TYPES,
    "truth_artefacts": ARTEFACTS,
}
"""Names of the columns of every `truth_` array of `obsm` but the centres."""


def build_table(specimen: Specimen) -> ad.AnnData:
    """The table of a specimen, as `SectionDraft` asks for.

    `layers["truth_expected"]` is the expected count before the noise of counting; `obsm["truth_spatial"]` where a
    location truly lies, `obsm["spatial"]` where it is stated to lie; the other arrays are named in `TRUTH_COLUMNS`.
    Truth is of the true place, but `truth_artefacts`, which is of the stated one, where a model cuts its pixels.
    """
    config, keys = specimen.config, specimen.keys
    centres, rows, columns = specimen.places
    number = specimen.cells_by_type.sum(1)
    composition = specimen.cells_by_type / np.maximum(number, 1)[:, None]
    around = surrounding_shares(specimen.tissue.cells, centres, config.spots.diameter_um / 2, config.molecules.niche_um)
    content = (config.language, specimen.domain_shares, composition, number / area_mm2(config.spots))
    captions, what_was_done = write_captions(
        *content,
        stream(config.seed, "words", *keys),
        lots=stream(config.seed, "what is done to captions", *keys).random(len(centres)),
        section_text=section_caption(specimen),
    )
    obs = pd.DataFrame(
        {
            "caption": captions,
            "caption_held_out": held_out_captions(*content, stream(config.seed, "held-out words", *keys)),
            "label": specimen.labels,
            "array_row": rows,
            "array_col": columns,
            "batch": f"site-{specimen.person.chemistry_site + 1}",
            "phenotype": np.where(specimen.phenotype > 0, "high", "low").astype(object),
            "niche": np.where(around.any(1), np.array(CELL_TYPES, dtype=object)[around.argmax(1)], ""),
            "truth_caption": what_was_done,
            "truth_cells": number.astype(np.int64),
        },
        index=pd.Index([f"{r:03d}x{c:03d}" for r, c in zip(rows, columns, strict=True)], dtype=object),
    )
    symbols = specimen.world.symbols
    var = pd.DataFrame(
        {"ensembl_id": np.full(len(symbols), "", dtype=object), "measured": True},
        index=pd.Index(symbols, dtype=object),
    )
    if config.spots.is_square:
        counts, var["measured"] = bin_table(specimen)
    else:
        counts = draw_counts(config, specimen.expected, stream(config.seed, "counts", *keys))
    if config.spots.platform == "xenium":
        core, addon = panel(config, specimen.patient)
        var["panel"] = np.where(core, "core", np.where(addon, "add-on", "")).astype(object)
    blank = np.zeros_like(specimen.tissue.cover)
    spoiled = [specimen.artefacts.get(name, blank) for name in ARTEFACTS]
    # Artefacts are in the pixels, and pixels are cut where a location is stated to lie.
    stated = centres + registration_error(config, *keys, centres)
    return ad.AnnData(
        X=counts,
        obs=obs,
        var=var,
        layers={"truth_expected": specimen.expected.astype(np.float32)},
        obsm={
            "spatial": stated,
            "truth_spatial": centres,
            "truth_composition": composition,
            "truth_domains": specimen.domain_shares,
            "truth_states": specimen.states,
            "truth_niches": specimen.niches,
            "truth_surroundings": around,
            "truth_artefacts": np.stack([specimen.footprint.mean(field, stated) for field in spoiled], 1),
        },
    )
