"""``gptoss-quant audit``: statistics of a model's weights, and checks that need no source."""
