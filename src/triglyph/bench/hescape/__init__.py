"""HESCAPE's evaluations: retrieval in its own batches and in full galleries, expression, mutations."""
