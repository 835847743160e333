"""Genes: panels, vocabularies, identifiers, rank tokens."""
