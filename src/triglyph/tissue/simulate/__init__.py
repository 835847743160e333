"""Simulated tissue with known truth, in separable parts.

- `knobs/`, `presets`: a world as a frozen record, block by block, and the worlds that have a name.
- `streams`, `fields`: random numbers by name, and smooth fields drawn with them.
- `people`, `outcome`: who is drawn, and what a clinic would know of them.
- `anatomy/`: domains, what is carved into them, cells.
- `picture/`: what a microscope sees of them, as H&E and as proteins, and what goes wrong on a slide.
- `molecules/`: what cells express, and how it is counted.
- `locations`, `registration`, `table`: where a platform measures, where it says it does, and the table of both.
- `language`, `genesets`: what is written about the tissue.
- `specimen`: one section in memory; `cohort`, `donors` and `vendors/` hand it over.
"""
