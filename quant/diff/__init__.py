"""``gptoss-quant diff``: measure how two models A and B differ, tensor by tensor."""
