"""The engine: llama.cpp, its KV cache, and the scheduler that batches requests for it."""
