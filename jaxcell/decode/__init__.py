"""Dense maps to cells."""
