"""Image files to training batches."""
