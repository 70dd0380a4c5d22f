"""Generate token ids with llama.cpp; the only folder that imports it."""
