"""gpt-oss's forward pass for training a tiny one on a CPU: torch, float32, all experts at once.

Written against the published description of the model; ``test_tiny_training.py`` compares it with
transformers' ``GptOssForCausalLM``. What is done differently, and why:

* Every expert is computed for every token in one batched product, and the router's weights, zero
  for the experts not chosen, sum them up. With few experts that beats gathering tokens by expert.
* The attention sink is one more key: queries get one more dimension, always 1, in which only that
  key is not 0. So the fused attention kernel can be used, which knows no sinks.
* It is given the values that MXFP4 will hold (``as_held``); their gradient goes to the float32
  weights unchanged. Quantizing the finished model then loses nothing.
* Logits are computed only where there is a loss.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

Params = dict[str, Tensor]
"""Weights under their names in the checkpoint, experts as ``...gate_up_proj`` (E, 2I, H)."""

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""Ends of the names of the weights that MXFP4 holds."""

HEAD_DIM = 64
WINDOW = 128
ALPHA, LIMIT = 1.702, 7.0
ROPE_THETA, ROPE_FACTOR, ROPE_ORIGINAL, BETA_FAST, BETA_SLOW = 150000.0, 32.0, 4096, 32.0, 1.0
EPSILON = 1e-5

POINTING, MATCHING = 4.0, 1.6
"""How sharply heads point back by a fixed distance, and match by content, before training."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that differ from the real model's."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    experts: int
    experts_used: int

    def describe(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of trees: one prefix, then branches that all continue it and do not see each other.

    ``ids``, ``position`` and ``branch`` are (B, L); branch 0 is the prefix, -1 is padding.
    ``targets`` (N,) are the ids to predict at the flat places ``loss_at`` (N,).
    """

    ids: Tensor
    position: Tensor
    branch: Tensor
    loss_at: Tensor
    targets: Tensor

    def masks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to scores (B, 1, L, 1 + L): within the window, and without one.

        0 where a query may see the key, else -inf; the first key is the sink, seen by all.
        """
        position, branch = self.position.short(), self.branch.short()  # a quarter of the time
        distance = position[:, :, None] - position[:, None, :]
        own = branch[:, :, None] == branch[:, None, :]
        full = (own | (branch[:, None, :] == 0)) & (distance >= 0)
        return _added(full & (distance < WINDOW), dtype), _added(full, dtype)


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Converted once a batch, not once a layer."""
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)
    return functional.pad(mask[:, None], (1, 0))


def init_params(shape: Shape, seed: int) -> Params:
    """Normal weights, zero biases and sinks; outputs into the residual smaller with depth."""
    rng = torch.Generator().manual_seed(seed)
    hidden, inter, experts = shape.hidden, shape.intermediate, shape.experts
    queries, keys = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM

    def normal(*size: int, fan_in: int, gain: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=rng) * (gain / math.sqrt(fan_in))

    embedding = torch.randn(shape.vocab, hidden, generator=rng) * 0.5
    params = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": embedding * (1 / math.sqrt(hidden)),
    }
    back = 1 / math.sqrt(2 * shape.layers)
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        attn, mlp = f"{layer}self_attn.", f"{layer}mlp."
        params |= {
            f"{layer}input_layernorm.weight": torch.ones(hidden),
            f"{layer}post_attention_layernorm.weight": torch.ones(hidden),
            f"{attn}sinks": torch.zeros(shape.heads),
            f"{mlp}router.weight": normal(experts, hidden, fan_in=hidden),
            f"{mlp}router.bias": torch.zeros(experts),
            f"{mlp}experts.gate_up_proj": normal(experts, 2 * inter, hidden, fan_in=hidden),
            f"{mlp}experts.gate_up_proj_bias": torch.zeros(experts, 2 * inter),
            f"{mlp}experts.down_proj": normal(experts, hidden, inter, fan_in=inter, gain=back),
            f"{mlp}experts.down_proj_bias": torch.zeros(experts, hidden),
        }
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            params[f"{attn}{name}_proj.weight"] = normal(rows, hidden, fan_in=hidden)
            params[f"{attn}{name}_proj.bias"] = torch.zeros(rows)
        params[f"{attn}o_proj.weight"] = normal(hidden, queries, fan_in=queries, gain=back)
        params[f"{attn}o_proj.bias"] = torch.zeros(hidden)
    _look_back(params, shape, rng)
    return params


def _look_back(params: Params, shape: Shape, rng: torch.Generator) -> None:
    """Give the first two layers, and every later full one, heads that can copy from the start.

    A model this small otherwise spends most of an hour before it finds out that text repeats. In
    layer 0 the first group of heads looks one and two places back by biases alone; the first of
    them writes what was there into a subspace of its own. In full layers the first group compares
    the current token with that subspace, so it finds what followed the same token earlier, and
    writes it out. The hidden size must have room for both, twice the size of a head.
    Comparing uses the slow half of the rotary dimensions, which are the same at any distance.
    """
    hidden, half = shape.hidden, HEAD_DIM // 2
    frequency = rope_frequency()
    slow = (frequency < 1 / 128).nonzero().flatten()
    slow = torch.cat((slow, slow + half))
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=rng)).Q.T
    seen, written = basis[:HEAD_DIM], basis[HEAD_DIM : 2 * HEAD_DIM]

    first = "model.layers.0.self_attn."
    group = shape.heads // shape.kv_heads
    params[f"{first}k_proj.bias"][:half] = POINTING
    params[f"{first}k_proj.weight"][:HEAD_DIM] *= 0.1
    params[f"{first}q_proj.weight"][: group * HEAD_DIM] *= 0.1
    for head in range(group):
        back = -(head + 1) * frequency
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        params[f"{first}q_proj.bias"][rows] = POINTING * torch.cat((back.cos(), back.sin()))
    params[f"{first}v_proj.weight"][:HEAD_DIM] = seen
    params[f"{first}o_proj.weight"][:, :HEAD_DIM] = written.T

    for i in range(1, shape.layers, 2):
        layer = f"model.layers.{i}.self_attn."
        for head in range(group):
            rows = head * HEAD_DIM + slow
            params[f"{layer}q_proj.weight"][head * HEAD_DIM : (head + 1) * HEAD_DIM] *= 0.3
            params[f"{layer}q_proj.weight"][rows] = MATCHING * seen[: len(slow)]
            columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            params[f"{layer}o_proj.weight"][:, columns] = seen.T / group
        params[f"{layer}k_proj.weight"][:HEAD_DIM] *= 0.3
        params[f"{layer}k_proj.weight"][slow] = MATCHING * written[: len(slow)]
        params[f"{layer}v_proj.weight"][:HEAD_DIM] = seen


# ---------------------------------------------------------------- MXFP4 in the loop


def _on_grid(blocks: Tensor, exponent: Tensor) -> Tensor:
    """The nearest E2M1 values at the scale ``2**exponent``, ties to even, saturating at 6."""
    scaled = torch.ldexp(blocks, -exponent)
    size = scaled.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    rounded = (torch.round(scaled / step) * step).clamp(-6, 6)
    return torch.ldexp(rounded, exponent)


def mxfp4_values(weight: Tensor) -> Tensor:
    """What ``gptoss.quant.encoder.encode`` keeps of a weight, blocks of 32 along the last axis."""
    blocks = weight.detach().reshape(-1, 32)
    largest = blocks.abs().amax(-1, keepdim=True).clamp(min=2.0**-120)
    standard = torch.floor(torch.log2(largest)) - 2
    best = _on_grid(blocks, standard)
    error = (best - blocks).square().sum(-1, keepdim=True)
    for step in (1, -1):
        other = _on_grid(blocks, standard + step)
        other_error = (other - blocks).square().sum(-1, keepdim=True)
        best = torch.where(other_error < error, other, best)
        error = torch.minimum(error, other_error)
    return best.reshape(weight.shape)


def as_held(named: tuple[str, Tensor]) -> Tensor:
    """A copy to take gradients of: of experts the values that MXFP4 will hold, else as it is."""
    name, weight = named
    return (mxfp4_values(weight) if name.endswith(EXPERTS) else weight.detach()).requires_grad_()


# ---------------------------------------------------------------- the forward pass


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, EPSILON)


def rope_frequency() -> Tensor:
    """Radians a position (D/2,), YaRN's: fast ones as they are, slow ones stretched 32 times."""
    frequency = ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)

    def dimension(rotations: float) -> float:
        turns = ROPE_ORIGINAL / (rotations * 2 * math.pi)
        return HEAD_DIM * math.log(turns) / (2 * math.log(ROPE_THETA))

    low, high = dimension(BETA_FAST), dimension(BETA_SLOW)
    stretched = ((torch.arange(HEAD_DIM // 2) - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - stretched) + frequency / ROPE_FACTOR * stretched


def rope_table(position: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, D/2), with YaRN's attention factor."""
    angle = position[:, None, :, None] * rope_frequency()
    factor = 0.1 * math.log(ROPE_FACTOR) + 1
    return angle.cos() * factor, angle.sin() * factor


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    cos, sin = rope
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _attention(
    x: Tensor, p: Params, name: str, rope: tuple[Tensor, Tensor], mask: Tensor
) -> Tensor:
    batch, length, _ = x.shape

    def heads(which: str) -> Tensor:
        y = functional.linear(x, p[f"{name}{which}_proj.weight"], p[f"{name}{which}_proj.bias"])
        return y.view(batch, length, -1, HEAD_DIM).transpose(1, 2)

    q, k, v = _rotate(heads("q"), rope), _rotate(heads("k"), rope), heads("v")
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # Eight more dimensions, not one: the kernel is faster on whole vectors.
    q = functional.pad(q, (0, 8), value=0.0)
    q = torch.cat((q[..., :HEAD_DIM], torch.ones_like(q[..., HEAD_DIM:])), -1)
    sink = p[f"{name}sinks"] * (math.sqrt(HEAD_DIM) / 8)
    sink_key = functional.pad(sink[None, :, None, None].expand(batch, -1, 1, 8), (HEAD_DIM, 0))
    k = torch.cat((sink_key, functional.pad(k, (0, 8))), 2)
    v = functional.pad(v, (0, 8, 1, 0))
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=HEAD_DIM**-0.5)
    y = y[..., :HEAD_DIM].transpose(1, 2).reshape(batch, length, -1)
    return functional.linear(y, p[f"{name}o_proj.weight"], p[f"{name}o_proj.bias"])


def _half(x: Tensor, gate_up: Tensor, bias: Tensor, first: int) -> Tensor:
    """Every expert's gate (0) or up (1), (T, E, I): taken apart before the product, since the
    results' alternating columns would be slow to work on."""
    experts, rows, hidden = gate_up.shape
    weight = gate_up[:, first::2].reshape(-1, hidden)
    y = functional.linear(x, weight, bias[:, first::2].reshape(-1))
    return y.view(-1, experts, rows // 2)


def _experts(x: Tensor, p: Params, name: str, used: int) -> Tensor:
    """(T, H) to (T, H): the router's choice of experts, gate and up in alternating rows."""
    with torch.autocast("cpu", enabled=False):  # a choice made in bfloat16 would be coarse
        logits = functional.linear(x.float(), p[f"{name}router.weight"], p[f"{name}router.bias"])
    chosen = logits.topk(used, -1)
    share = torch.zeros_like(logits).scatter(-1, chosen.indices, chosen.values.softmax(-1))
    gate_up, down = p[f"{name}experts.gate_up_proj"], p[f"{name}experts.down_proj"]
    gate = _half(x, gate_up, p[f"{name}experts.gate_up_proj_bias"], 0)
    up = _half(x, gate_up, p[f"{name}experts.gate_up_proj_bias"], 1)
    # hardtanh is clamp with a gradient that takes a third of the time.
    gate = functional.hardtanh(gate, -math.inf, LIMIT)
    up = functional.hardtanh(up, -LIMIT, LIMIT)
    y = (up + 1) * gate * torch.sigmoid(ALPHA * gate) * share.to(gate.dtype)[..., None]
    hidden = x.shape[-1]
    flat = down.transpose(0, 1).reshape(hidden, -1)
    return (
        functional.linear(y.reshape(len(x), -1), flat) + share @ p[f"{name}experts.down_proj_bias"]
    )


def forward(p: Params, shape: Shape, batch: Batch) -> Tensor:
    """Logits (N, V) at the places with a loss."""
    in_bfloat16 = torch.is_autocast_enabled("cpu")
    masks = batch.masks(torch.bfloat16 if in_bfloat16 else torch.float32)
    rope = rope_table(batch.position)
    x = functional.embedding(batch.ids, p["model.embed_tokens.weight"])
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        y = _norm(x, p[f"{layer}input_layernorm.weight"])
        x = x + _attention(y, p, f"{layer}self_attn.", rope, masks[i % 2])
        y = _norm(x, p[f"{layer}post_attention_layernorm.weight"])
        x = x + _experts(y.flatten(0, 1), p, f"{layer}mlp.", shape.experts_used).view_as(x)
    x = x.flatten(0, 1)[batch.loss_at]
    return functional.linear(_norm(x, p["model.norm.weight"]), p["lm_head.weight"])
