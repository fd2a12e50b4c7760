"""From a system and batches to a trained state."""
