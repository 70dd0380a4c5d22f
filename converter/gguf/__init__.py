"""Encode a GGUF: header bytes, metadata keys, vocabulary, split into several files."""
