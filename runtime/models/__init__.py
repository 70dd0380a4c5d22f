"""Before a model is loaded: preflight check of the GGUF, its sizes, and a plan of the memory."""
