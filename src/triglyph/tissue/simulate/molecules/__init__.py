"""Molecules: what cells express, and how platforms count it."""
