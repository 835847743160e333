"""Protocols that read labels: off embeddings by probes, neighbours and clusters, or from words alone."""
