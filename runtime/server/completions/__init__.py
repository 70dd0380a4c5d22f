"""`/v1/completions`: text or token ids in, text and token ids out, without harmony."""
