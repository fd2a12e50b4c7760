"""Data sets as tensorflow-datasets in array_record files, written and read without TensorFlow."""
