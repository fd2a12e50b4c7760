"""A microscope made of code: shapes of cells, optics, and one renderer per modality."""
