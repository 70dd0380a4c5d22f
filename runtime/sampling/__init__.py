"""Choose the next token: samplers, grammars for constrained decoding, detection of loops."""
