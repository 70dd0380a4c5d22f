"""Load a checkpoint or a GGUF as one ``Model``: tensors, dtypes, readers of tensor values."""
