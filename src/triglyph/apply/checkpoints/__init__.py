"""Checkpoints that others published, read as data and turned into releases of ours."""
