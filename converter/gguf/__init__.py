"""Write the GGUF format: header, metadata, vocabulary, split into several files."""
