"""Tissue on disk: Section, Cohort, Split, readers, windows, simulator."""
