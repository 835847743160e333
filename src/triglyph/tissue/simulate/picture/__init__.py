"""The picture: nuclei, stain, what goes wrong on a slide, and the H&E that comes of them."""
