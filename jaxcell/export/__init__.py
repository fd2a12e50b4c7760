"""Cells as files that other programs read."""
