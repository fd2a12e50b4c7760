"""A trained network over images of any size."""
