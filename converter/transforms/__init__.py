"""Transform a tensor's bytes: published BF16 and MXFP4, fine-tunes' floats, and back."""
