"""Recipe, batches, feature cache, loop, checkpoints."""
