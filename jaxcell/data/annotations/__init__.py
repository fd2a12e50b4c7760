"""Readers of other programs' annotations, one file per format family, and what they share."""
