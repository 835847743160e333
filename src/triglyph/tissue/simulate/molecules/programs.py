"""Genes of the simulator: HGNC symbols, the markers of each cell type and the programmes of each state.

Known biology of breast tissue, chosen so that gene sets and captions mean something to a reader; strengths are drawn
by `expression`. A gene may mark several types.
"""

from __future__ import annotations

MARKERS: dict[str, str] = {
    "tumour": """EPCAM KRT8 KRT18 KRT19 KRT7 ERBB2 GRB7 MUC1 CDH1 ESR1 GATA3 FOXA1 TFF1 TFF3 AGR2 XBP1 PGR SPDEF
        CLDN4 CLDN3 CEACAM6 S100P FASN SCD MIEN1 STARD3 PGAP3 TACSTD2 ELF3 CD24 AREG ANKRD30A
        SLC39A6 MLPH TSPAN13 S100A14 LMNB1 CRABP2 NQO1""",
    "epithelial": """EPCAM KRT8 KRT18 KRT19 KRT5 KRT14 KRT15 KRT17 ACTA2 MYH11 OXTR TP63 SCGB2A2 SCGB1D2 LTF PIGR ELF5
        KIT SLPI PROM1 SAA1 SAA2 CNN1 TAGLN WFDC2 AZGP1 PIP MUCL1 DSP DST SFN CALML5""",
    "fibroblast": """COL1A1 COL1A2 COL3A1 COL5A1 COL6A1 COL6A2 COL6A3 DCN LUM FBLN1 FBLN2 FN1 POSTN SPARC THY1 PDGFRA
        PDGFRB FAP VIM MMP2 MMP11 CTSK IGF1 CXCL12 SFRP2 SFRP4 DPT C1S C1R BGN VCAN ASPN TIMP1 TIMP3
        LOX MFAP5 PI16""",
    "T cell": """CD3D CD3E CD3G CD2 CD5 CD7 TRAC TRBC1 TRBC2 CD8A CD8B CD4 IL7R CCR7 GZMA GZMB GZMK NKG7 PRF1 CCL5
        FOXP3 CTLA4 PDCD1 TIGIT LAG3 ICOS LCK ZAP70 CXCR3 PTPRC CD69 IL32""",
    "B cell": """CD19 MS4A1 CD79A CD79B CD22 BANK1 CR2 FCRL5 PAX5 BLK CXCR5 IGHM IGHD IGHG1 IGKC IGLC2 JCHAIN MZB1
        TNFRSF17 DERL3 CD27 CD37 HLA-DRA CD74 PTPRC SPIB VPREB3 TCL1A""",
    "macrophage": """CD68 CD163 CSF1R LYZ AIF1 TYROBP FCER1G C1QA C1QB C1QC APOE APOC1 MRC1 MSR1 CD14 ITGAX MARCO SPP1
        CTSD CTSB FTL CD74 HLA-DRA HLA-DRB1 MS4A7 GPNMB FCGR3A S100A9 S100A8 VSIG4 LAPTM5""",
    "endothelial": """PECAM1 VWF CDH5 KDR FLT1 TEK TIE1 ENG EMCN CLDN5 ESAM PLVAP RAMP2 AQP1 CD34 SELE ACKR1 EGFL7 ERG
        SOX17 NOTCH4 ROBO4""",
    "adipocyte": """ADIPOQ PLIN1 PLIN4 LEP FABP4 CIDEC CIDEA LPL ADH1B GPD1 CD36 PPARG LIPE DGAT2 ACACB AQP7 CFD RBP4
        PNPLA2 TRARG1 SCD FASN""",
}  # fmt: skip

PROGRAMMES: dict[str, tuple[tuple[str, ...], str]] = {
    "proliferation": (
        ("tumour",),
        "MKI67 TOP2A CCNB1 CCNB2 CDK1 AURKA AURKB BIRC5 UBE2C TYMS RRM2 PCNA MCM2 MCM3 STMN1 TUBA1B HMGB2 H2AZ1 CENPF",
    ),
    "fibrosis": (
        ("fibroblast",),
        "COL1A1 COL1A2 COL3A1 COL5A1 COL10A1 COL11A1 POSTN FN1 SPARC CTHRC1 LOX LOXL2 TGFB1 MMP11 THBS2 COMP INHBA",
    ),
    "hypoxia": (
        ("tumour", "macrophage", "epithelial"),
        "CA9 VEGFA SLC2A1 NDRG1 ADM LDHA PGK1 ENO1 BNIP3 P4HA1 ANGPTL4 HK2 PDK1 ALDOA EGLN3",
    ),
    "inflammation": (
        ("T cell", "B cell", "macrophage", "tumour"),
        "ISG15 IFI6 IFIT1 IFIT3 MX1 OAS1 STAT1 CXCL9 CXCL10 CXCL11 IRF1 GBP1 PSMB9 B2M HLA-A HLA-B IDO1 CD274 CCL19",
    ),
    "oestrogen response": (
        ("tumour",),
        "ESR1 PGR GREB1 TFF1 TFF3 XBP1 CCND1 MYB BCL2 IGFBP4 PDZK1 SIAH2 AREG CA12 STC2 IL6ST NRIP1 RARA",
    ),
    "lipid metabolism": (
        ("tumour", "macrophage", "adipocyte"),
        "FASN SCD ACACA ACLY SREBF1 HMGCS1 HMGCR LDLR SQLE LPIN1 ELOVL6 INSIG1 FADS1 FADS2 IDI1 ABCA1 ABCG1 LPL PLIN2",
    ),
    "stress response": (
        ("tumour", "epithelial", "fibroblast", "T cell", "B cell", "macrophage", "endothelial", "adipocyte"),
        "HSPA1A HSPA1B DNAJB1 HSP90AA1 HSPH1 HSPE1 HSPD1 JUN FOS FOSB EGR1 ATF3 DUSP1 IER2 IER3 NR4A1 KLF6 GADD45B",
    ),
}

HOUSEKEEPING = """ACTB ACTG1 GAPDH TUBB EEF1A1 EEF2 RPLP0 RPL3 RPL10 RPL13A RPL19 RPS3 RPS6 RPS18 RPS27A UBC UBB
        HSP90AB1 HSPA8 TPT1 PPIA YWHAZ CALM2 MALAT1 NEAT1 TMSB4X TMSB10 FTH1 MYL6 CFL1 PFN1 ARPC2
        COX4I1 COX6C ATP5F1B NDUFA4 SOD1 PRDX1 GSTP1 HNRNPA1 SRSF3 DDX5 EIF4A1 EIF1 NACA BTF3 SUMO2
        TXN SERF2 JUN FOS EGR1 ZFP36 DUSP1 HSPB1 HSPA1A"""

NICHES: dict[str, tuple[str, str, str]] = {
    "stroma at the tumour": (
        "fibroblast", "tumour", "FAP POSTN COL11A1 MMP11 INHBA CTHRC1 LRRC15 ACTA2 TGFB1 COL10A1 SULF1 GREM1 WNT5A",
    ),
    "tumour in stroma": (
        "tumour", "fibroblast", "VIM FN1 SNAI2 ZEB1 ITGA5 LAMC2 MMP14 PLAUR TGFBI L1CAM PDPN SERPINE1",
    ),
    "tumour under attack": (
        "tumour", "T cell", "HLA-A HLA-B HLA-C B2M TAP1 PSMB8 PSMB9 CXCL9 CXCL10 CD274 IDO1 STAT1 GBP4",
    ),
    "exhaustion": ("T cell", "tumour", "PDCD1 LAG3 HAVCR2 TIGIT CTLA4 TOX ENTPD1 CXCL13 LAYN TNFRSF9"),
    "macrophage at the tumour": (
        "macrophage", "tumour", "SPP1 TREM2 GPNMB CD9 FABP5 APOC1 MARCO VEGFA MMP9 MMP12",
    ),
}  # fmt: skip
"""Name -> (type that expresses, type whose presence nearby calls it up, genes)."""

NECROSIS = "HMOX1 GADD45A DDIT3 TRIB3 HSPA1A S100A8 S100A9 IL1B CXCL8 SOD2 MT2A NAMPT"
"""Genes of dying tissue and what it calls in; their transcripts lie where debris lies."""


def gene_symbols(filler: int = 0) -> tuple[str, ...]:
    """All genes of the simulator: the named ones sorted, each once, then `SIM0001`, `SIM0002`, ..."""
    texts = [*MARKERS.values(), *(text for _, text in PROGRAMMES.values()), *(text for *_, text in NICHES.values())]
    named = sorted({symbol for text in [*texts, HOUSEKEEPING, NECROSIS] for symbol in text.split()})
    return (*named, *(f"SIM{i + 1:04d}" for i in range(filler)))
