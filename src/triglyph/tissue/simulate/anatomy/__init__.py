"""Anatomy: domains, what is carved into them, and cells."""
