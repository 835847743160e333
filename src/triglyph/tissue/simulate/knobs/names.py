"""Names of what the simulator draws: cell types, domains, subtypes and protein channels."""

from __future__ import annotations

CELL_TYPES = ("tumour", "epithelial", "fibroblast", "T cell", "B cell", "macrophage", "endothelial", "adipocyte")
DOMAINS = (
    "invasive cancer",
    "cancer in situ",
    "immune infiltrate",
    "connective tissue",
    "breast glands",
    "adipose tissue",
    "necrosis",
)
SUBTYPES = ("luminal", "basal")
PROTEIN_CHANNELS = (
    "DAPI", "panCK", "CD3", "CD8", "CD20", "CD68", "SMA", "CD31", "Vimentin", "Ki67", "ER", "HER2", "PD-L1",
)  # fmt: skip
"""What `protein` can show; `protein.CHANNELS` says how."""
