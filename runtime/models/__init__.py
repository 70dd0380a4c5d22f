"""Before a model is loaded: check the GGUF, plan the memory."""
