"""``gptoss-quant verify``: prove that a GGUF equals its source checkpoint or is rounded from it correctly."""
