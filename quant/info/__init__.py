"""``gptoss-quant info``: what a model is, from its headers alone."""
