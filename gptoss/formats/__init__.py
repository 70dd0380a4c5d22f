"""File formats: bounded readers of safetensors and GGUF, tensor map, hyperparameters, tokens."""
