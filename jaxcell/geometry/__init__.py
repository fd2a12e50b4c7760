"""Mathematics of outlines, boxes and labels, written once for numpy (data workers) and jax (losses)."""
