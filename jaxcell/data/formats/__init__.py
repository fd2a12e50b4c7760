"""Image files, one module a family of formats: each opens a file without decoding it and gives a `Stored`."""
