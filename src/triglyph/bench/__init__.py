"""Protocols, baselines, nulls, intervals."""
