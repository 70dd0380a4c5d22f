"""Transform a tensor's bytes: checkpoint to GGUF, floats to MXFP4, and back."""
