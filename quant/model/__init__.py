"""A checkpoint or a GGUF loaded as one ``Model``: tensors, dtypes, readers of their values."""
