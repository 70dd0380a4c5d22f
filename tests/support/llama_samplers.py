"""llama.cpp's own samplers, as the chance of each token: an oracle for ``runtime/sampling``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence

import llama_cpp

from gptoss.runtime.engine.base import Logits
from gptoss.runtime.sampling.parameters import Sampling

DEFAULT_ORDER = ("bias", "penalties", "top_k", "top_p", "min_p", "temperature")
"""The order of llama-server and llama-cli."""

OUR_ORDER = ("bias", "penalties", "temperature", "top_k", "top_p", "min_p")


def llama_shares(
    logits: Logits, sampling: Sampling, before: Iterable[int] = (), order: Sequence[str] = OUR_ORDER
) -> dict[int, float]:
    """Each token that may be drawn and its share, ascending by id; ``before`` are the tokens
    generated so far."""
    n = logits.size
    biases = [llama_cpp.llama_logit_bias(*pair) for pair in sampling.logit_bias.items()]
    array = (llama_cpp.llama_logit_bias * len(biases))(*biases)
    make = {
        "bias": lambda: llama_cpp.llama_sampler_init_logit_bias(n, len(biases), array),
        "penalties": lambda: llama_cpp.llama_sampler_init_penalties(
            n,
            4096,
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        ),
        "temperature": lambda: llama_cpp.llama_sampler_init_temp(sampling.temperature),
        "top_k": lambda: llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        "top_p": lambda: llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        "min_p": lambda: llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
    }
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for name in order:
        llama_cpp.llama_sampler_chain_add(chain, make[name]())
    for token in before:
        llama_cpp.llama_sampler_accept(chain, token)
    tokens = (llama_cpp.llama_token_data * n)(*((i, float(x), 0) for i, x in enumerate(logits)))
    candidates = llama_cpp.llama_token_data_array(tokens, n, -1, False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(candidates))
    llama_cpp.llama_sampler_free(chain)
    kept = {tokens[i].id: tokens[i].logit for i in range(candidates.size)}
    top = max(kept.values())
    weights = {i: math.exp(kept[i] - top) for i in sorted(kept)}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}
