"""The evaluations of Stamp (Han et al., ICLR 2026), as far as they are published."""
