"""The buffers of a context on the CPU by arithmetic: keys and values exactly, the graph from above.

``engine.buffer_sizes`` measures both exactly, in a process of its own. A load needs that only
where memory is scarce.
"""

from __future__ import annotations

from gptoss.formats.hparams import HParams
from gptoss.runtime.engine.buffer_sizes import CPU, Buffers
from gptoss.runtime.engine.settings import EngineSettings, KvType

BITS: dict[KvType, float] = {"f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q4_0": 4.5}
"""Bits of one value, its share of the block's scale included."""

_CELLS = 256
"""llama.cpp rounds the cells of a cache up to a multiple of this."""


def estimate_buffers(hparams: HParams, settings: EngineSettings) -> Buffers:
    """Return the bytes of keys and values that a context has, and a bound of its graph's: 1.0 to
    1.3 times what llama.cpp allocates for the 20b.
    """
    n_layers = hparams.num_hidden_layers
    n_window = -(-n_layers // 2)  # the even ones
    full = _padded(settings.n_ctx)
    window = min(full, _padded(hparams.sliding_window + settings.n_batch))
    per_cell = 2 * hparams.num_key_value_heads * hparams.head_dim * BITS[settings.kv_type] / 8
    streams = settings.n_sequences
    return Buffers(
        kv_full=int((n_layers - n_window) * streams * full * per_cell),
        kv_window=int(n_window * streams * window * per_cell),
        compute={CPU: _graph(hparams, settings)},
        layers=(CPU,) * (n_layers + 1),
    )


def _graph(hparams: HParams, settings: EngineSettings) -> int:
    """Bound the bytes of the graph: the attention's mask, and activations that live at a time."""
    experts = 3 * hparams.num_experts_per_tok * hparams.intermediate_size
    attention = 3 * hparams.num_attention_heads * hparams.head_dim
    activations = 4 * (experts + attention + 4 * hparams.hidden_size)
    mask = 2 * (_padded(settings.n_ctx) + 2 * _CELLS)
    logits = 2 * 4 * settings.n_outputs * hparams.vocab_size
    return settings.n_batch * (activations + mask) + logits + 2**20


def _padded(cells: int) -> int:
    return -(-cells // _CELLS) * _CELLS
