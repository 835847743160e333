"""Readers of vendors' folders: one file per platform behind the contract in `base`, found through entry points."""
