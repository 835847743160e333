"""Encoders behind one contract, found by name."""
