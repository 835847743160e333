"""Labels of whole slides and patients, from all that lies on them."""
