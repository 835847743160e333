"""The benchmarks of SpatialWhisperer (Schaefer et al., ICML 2026): words against patches of labelled nuclei or skin."""
