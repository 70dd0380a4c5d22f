"""``gptoss-quant verify``: prove that a GGUF holds what its source checkpoint holds."""
