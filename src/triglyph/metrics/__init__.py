"""Metrics over locations x genes, and the Result row."""
