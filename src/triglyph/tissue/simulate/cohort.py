"""Sections of simulated patients, as drafts: the picture is drawn and written, everything else is handed over."""

from __future__ import annotations

from pathlib import Path

from triglyph.tissue.draft import ImageSource, SectionDraft
from triglyph.tissue.frames import Affine
from triglyph.tissue.pyramid import write_pyramid
from triglyph.tissue.simulate.knobs.simulation import Simulation
from triglyph.tissue.simulate.language import HELD_OUT, domain_captions, section_caption
from triglyph.tissue.simulate.molecules.bins import effective_dispersion
from triglyph.tissue.simulate.picture.he import he_pixels
from triglyph.tissue.simulate.picture.protein import write_protein
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.units import Mpp, Um

SIMULATOR = "triglyph.tissue.simulate"
VERSION = 3
"""Raised whenever the same record gives other bytes."""


def patient_id(patient_index: int) -> str:
    """`P01` for the first."""
    return f"P{patient_index + 1:02d}"


def section_id(patient_index: int, section_index: int) -> str:
    """`P01-S1` for the first section of the first patient."""
    return f"{patient_id(patient_index)}-S{section_index + 1}"


def simulate_section(
    config: Simulation, patient_index: int, section_index: int, image_path: Path, *, protein: Path | None = None
) -> SectionDraft:
    """One section: its H&E is written to `image_path`, everything else is in the draft.

    Parameters
    ----------
    config
        The simulated world.
    patient_index, section_index
        From 0. The same four arguments give the same bytes, in any order and any process.
    image_path
        Where the pyramidal TIFF goes.
    protein
        Folder for `<section>.ome.tif`, where the world has protein channels; without it there is none.

    Raises
    ------
    StorageError
        The image cannot be written.
    """
    specimen = Specimen(config, patient_index, section_index)
    pixels, dye = he_pixels(specimen)
    write_pyramid(pixels, image_path, mpp=dye.mpp, quality=config.stain.quality, tile=config.stain.tile)
    image = ImageSource(
        path=image_path, to_um=Affine.scale(dye.mpp), mpp=Mpp(dye.mpp), mpp_source="simulated", name="he"
    )
    draft = draft_of(specimen, [image])
    if protein is not None and config.protein.channels:
        seen = write_protein(specimen, protein / f"{draft.section_id}.ome.tif")
        draft.table.obsm["truth_protein"] = seen.truth
        draft.source |= {"protein": seen.path.name, "protein_mpp": seen.mpp, "truth_protein": list(seen.channels)}
    return draft


def draft_of(specimen: Specimen, images: list[ImageSource]) -> SectionDraft:
    """The draft of a specimen whose pictures are drawn, or of one that has none."""
    config, spots = specimen.config, specimen.config.spots
    patient = patient_id(specimen.patient)
    return SectionDraft(
        section_id=section_id(*specimen.keys),
        patient=patient,
        platform=spots.platform,
        table=specimen.table,
        location_um=Um(spots.diameter_um),
        pitch_um=Um(spots.pitch_um),
        location_shape="square" if spots.is_square else "circle",
        images=images,
        block=f"{patient}-B{specimen.block + 1}",
        organ=config.organ,
        source={
            "simulator": SIMULATOR,
            "version": VERSION,
            "preset": config.name,
            "config": config.digest(),
            "seed": config.seed,
            "subtype": specimen.subtype,
            "stain_site": specimen.person.stain_site,
            "chemistry_site": specimen.person.chemistry_site,
            "section_caption": section_caption(specimen),
            "section_caption_held_out": section_caption(specimen, words=HELD_OUT),
            "domain_captions": domain_captions(specimen),
            "truth_dispersion": effective_dispersion(specimen),
            **specimen.truth_columns,
        },
    )
