"""Choose the next token: samplers, constrained decoding by grammar, repetition."""
