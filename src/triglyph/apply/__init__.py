"""What users do with a model."""
