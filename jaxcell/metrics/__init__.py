"""Counts that add up, and the scores that follow from them."""
