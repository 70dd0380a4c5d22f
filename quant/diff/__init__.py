"""``gptoss-quant diff``: compare two models tensor by tensor."""
