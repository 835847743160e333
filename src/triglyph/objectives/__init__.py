"""Losses that know nothing of the trainer."""
