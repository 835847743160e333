"""Cores of colorectal cancer of PathoCell (Kainmueller-Lab/PathoCell; Rumberger et al., arXiv 2507.03532).

    pathocell_hdf/reg001_A.hdf   img (3, H, W), gt_inst (1, H, W), gt_ct_coarse (1, H, W), and maps not used here

The published figures are over 109 cores of 35 patients, 1920 x 1440 px each, with 15 classes taken over from CODEX of
the same cores. The files name neither the patient of a core nor its scale; 0.5 µm/px is what the release of
SpatialWhisperer declares.
"""

from __future__ import annotations

from pathlib import Path

from triglyph.errors import SourceError
from triglyph.tissue.checks import safe_id
from triglyph.tissue.draft import SectionDraft
from triglyph.tissue.readers.base import ReadOptions, SectionSource
from triglyph.tissue.readers.nuclei import nuclei_draft, read_hdf, scale_of
from triglyph.tissue.readers.scales import Scale
from triglyph.units import Mpp

FOLDER = "pathocell_hdf"
CLASSES = (
    "Background",
    "B cells",
    "Macrophages/Monocytes",
    "Adipocytes",
    "Dendritic cells",
    "T cells",
    "Granulocytes",
    "NK cells",
    "Nerves",
    "Plasma cells",
    "Smooth muscle",
    "Stroma",
    "Tumor cells",
    "Vasculature/Lymphatics",
    "Other cells",
)
"""By number of `gt_ct_coarse`."""
SCALE = Scale(Mpp(0.5), "declared 0.5 µm/px: SpatialWhisperer's metadata, not checked by anybody")


class PathoCellReader:
    """Reader of PathoCell's cores: one section a core."""

    platform = "pathocell"
    understands = frozenset({"mpp", "patient_pattern", "compat"})

    def discover(self, source: Path, options: ReadOptions) -> list[SectionSource]:
        """One section per HDF5 file."""
        folder = source / FOLDER if (source / FOLDER).is_dir() else source
        files = sorted(folder.glob("*.hdf")) if folder.is_dir() else []
        if not files:
            raise SourceError("not PathoCell: it has no .hdf files", where=source, mend=f"give the folder of {FOLDER}/")
        return [SectionSource(safe_id(f.stem, where=f), self.platform, folder, {"core": f}) for f in files]

    def read(self, section: SectionSource, options: ReadOptions) -> SectionDraft:
        """One core; the last row and column of squares are always left out."""
        found = read_hdf(section.file("core"), kinds="gt_ct_coarse", classes=CLASSES)
        scale = scale_of(options, SCALE)
        return nuclei_draft(section, options, found, CLASSES, scale=scale, drop="always", organ="colon", subset="")
