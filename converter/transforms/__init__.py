"""Transform a tensor's bytes: dense tensors, experts in MXFP4 or floats, and back."""
