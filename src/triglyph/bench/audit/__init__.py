"""The audit: what of a test set a split, a model or an encoder has already seen. Needs no torch."""
