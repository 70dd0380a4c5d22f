"""``gptoss-quant audit``: statistics of one model's weights, and checks without its source."""
