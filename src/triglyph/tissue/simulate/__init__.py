"""Simulated tissue with known truth, in separable parts.

`presets` states a world; `anatomy` and `compartments` lay out domains and cells; `nuclei` and `stain` draw them as
H&E; `programs` and `molecules` turn cells into counts; `language` writes captions; `cohort` makes sections of them.
"""
