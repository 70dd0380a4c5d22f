"""The tables of tensor names, shapes and roles: Hugging Face's, GGUF's and OpenAI's.

Each row gives a tensor of the GGUF, its source in the checkpoint, its role and its shape. Shapes
are in the letters of ``dimensions``, row-major, the slowest dimension first, as in numpy and
safetensors; ggml writes them in the opposite order.

Sources: transformers' ``GptOssForCausalLM`` and the published checkpoints; llama.cpp's
``LLM_ARCH_OPENAI_MOE``; OpenAI's ``gpt_oss.torch``.
"""

# The table is aligned in columns.

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from gptoss.formats.hparams import BLOCK, HParams


class TensorRole(Enum):
    """The kind of a tensor, which decides its types in the GGUF."""

    MATRIX = "dense matrix: BF16 in the checkpoint, the chosen type in the GGUF"
    EXACT = "norm, bias, sink or router: BF16 in the checkpoint, F32 in the GGUF"
    EXPERTS = "experts' weights: MXFP4 on both sides, packed differently"


class Rows(Enum):
    """Which rows of the source a tensor consists of: gate and up are interleaved, gate first."""

    ALL = "all"
    EVEN = "even"
    ODD = "odd"

    @property
    def indices(self) -> slice:
        """Return the indices of these rows in the source, to be used on any array of its rows."""
        return {Rows.ALL: slice(None), Rows.EVEN: slice(0, None, 2), Rows.ODD: slice(1, None, 2)}[
            self
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table; ``{i}`` is the layer. For EXPERTS, ``hf`` lacks ``_blocks``, ``_scales``."""

    gguf: str
    hf: str
    role: TensorRole
    shape: tuple[str, ...]
    rows: Rows = Rows.ALL


_X, _M, _F = TensorRole.EXPERTS, TensorRole.MATRIX, TensorRole.EXACT
_GATE_UP = "model.layers.{i}.mlp.experts.gate_up_proj"
_DOWN = "model.layers.{i}.mlp.experts.down_proj"

# fmt: off
OUTER = (
    Row("token_embd.weight",               "model.embed_tokens.weight",                        _M, ("V", "H")),
    Row("output_norm.weight",              "model.norm.weight",                                _F, ("H",)),
    Row("output.weight",                   "lm_head.weight",                                   _M, ("V", "H")),
)
BLOCKS = (
    Row("blk.{i}.attn_norm.weight",        "model.layers.{i}.input_layernorm.weight",          _F, ("H",)),
    Row("blk.{i}.attn_q.weight",           "model.layers.{i}.self_attn.q_proj.weight",         _M, ("Q", "H")),
    Row("blk.{i}.attn_q.bias",             "model.layers.{i}.self_attn.q_proj.bias",           _F, ("Q",)),
    Row("blk.{i}.attn_k.weight",           "model.layers.{i}.self_attn.k_proj.weight",         _M, ("K", "H")),
    Row("blk.{i}.attn_k.bias",             "model.layers.{i}.self_attn.k_proj.bias",           _F, ("K",)),
    Row("blk.{i}.attn_v.weight",           "model.layers.{i}.self_attn.v_proj.weight",         _M, ("K", "H")),
    Row("blk.{i}.attn_v.bias",             "model.layers.{i}.self_attn.v_proj.bias",           _F, ("K",)),
    Row("blk.{i}.attn_sinks.weight",       "model.layers.{i}.self_attn.sinks",                 _F, ("N",)),
    Row("blk.{i}.attn_output.weight",      "model.layers.{i}.self_attn.o_proj.weight",         _M, ("H", "Q")),
    Row("blk.{i}.attn_output.bias",        "model.layers.{i}.self_attn.o_proj.bias",           _F, ("H",)),
    Row("blk.{i}.post_attention_norm.weight", "model.layers.{i}.post_attention_layernorm.weight", _F, ("H",)),
    Row("blk.{i}.ffn_gate_inp.weight",     "model.layers.{i}.mlp.router.weight",               _F, ("E", "H")),
    Row("blk.{i}.ffn_gate_inp.bias",       "model.layers.{i}.mlp.router.bias",                 _F, ("E",)),
    Row("blk.{i}.ffn_gate_exps.weight",    _GATE_UP,                                           _X, ("E", "I", "H"), Rows.EVEN),
    Row("blk.{i}.ffn_up_exps.weight",      _GATE_UP,                                           _X, ("E", "I", "H"), Rows.ODD),
    Row("blk.{i}.ffn_gate_exps.bias",      _GATE_UP + "_bias",                                 _F, ("E", "I"), Rows.EVEN),
    Row("blk.{i}.ffn_up_exps.bias",        _GATE_UP + "_bias",                                 _F, ("E", "I"), Rows.ODD),
    Row("blk.{i}.ffn_down_exps.weight",    _DOWN,                                              _X, ("E", "H", "I")),
    Row("blk.{i}.ffn_down_exps.bias",      _DOWN + "_bias",                                    _F, ("E", "H")),
)

# Hugging Face's name, and OpenAI's. Rows of an OpenAI tensor are in the order of this table.
OPENAI = {
    "model.embed_tokens.weight":                         "embedding.weight",
    "model.layers.{i}.input_layernorm.weight":           "block.{i}.attn.norm.scale",
    "model.layers.{i}.self_attn.q_proj.weight":          "block.{i}.attn.qkv.weight",
    "model.layers.{i}.self_attn.k_proj.weight":          "block.{i}.attn.qkv.weight",
    "model.layers.{i}.self_attn.v_proj.weight":          "block.{i}.attn.qkv.weight",
    "model.layers.{i}.self_attn.q_proj.bias":            "block.{i}.attn.qkv.bias",
    "model.layers.{i}.self_attn.k_proj.bias":            "block.{i}.attn.qkv.bias",
    "model.layers.{i}.self_attn.v_proj.bias":            "block.{i}.attn.qkv.bias",
    "model.layers.{i}.self_attn.sinks":                  "block.{i}.attn.sinks",
    "model.layers.{i}.self_attn.o_proj.weight":          "block.{i}.attn.out.weight",
    "model.layers.{i}.self_attn.o_proj.bias":            "block.{i}.attn.out.bias",
    "model.layers.{i}.post_attention_layernorm.weight":  "block.{i}.mlp.norm.scale",
    "model.layers.{i}.mlp.router.weight":                "block.{i}.mlp.gate.weight",
    "model.layers.{i}.mlp.router.bias":                  "block.{i}.mlp.gate.bias",
    _GATE_UP + "_blocks":                               "block.{i}.mlp.mlp1_weight.blocks",
    _GATE_UP + "_scales":                               "block.{i}.mlp.mlp1_weight.scales",
    _GATE_UP + "_bias":                                 "block.{i}.mlp.mlp1_bias",
    _DOWN + "_blocks":                                  "block.{i}.mlp.mlp2_weight.blocks",
    _DOWN + "_scales":                                  "block.{i}.mlp.mlp2_weight.scales",
    _DOWN + "_bias":                                    "block.{i}.mlp.mlp2_bias",
    "model.norm.weight":                                 "norm.scale",
    "lm_head.weight":                                    "unembedding.weight",
}
# fmt: on


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A tensor that a checkpoint must have; a fine-tune may have other floats instead of BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor a GGUF must hold, and the checkpoint's tensors its values come from.

    ``shape`` is row-major, ``ggml_shape`` the same with the fastest dimension first, as in a GGUF.
    ``sources`` is one tensor, or for EXPERTS two: blocks, then scales.
    ``floats`` is the source of EXPERTS in a fine-tune saved in floats: inputs before outputs.
    """

    gguf: str
    role: TensorRole
    shape: tuple[int, ...]
    ggml_shape: tuple[int, ...]
    rows: Rows
    sources: tuple[HfTensor, ...]
    floats: HfTensor | None = None


def dimensions(hparams: HParams) -> dict[str, int]:
    """Return the sizes behind the letters (V, H, I, E, N, Q, K) in the table of tensor names and
    shapes.
    """
    return {
        "V": hparams.vocab_size,
        "H": hparams.hidden_size,
        "I": hparams.intermediate_size,
        "E": hparams.num_local_experts,
        "N": hparams.num_attention_heads,
        "Q": hparams.num_attention_heads * hparams.head_dim,
        "K": hparams.num_key_value_heads * hparams.head_dim,
    }


@lru_cache(maxsize=8)
def tensors(hparams: HParams) -> tuple[NamedTensor, ...]:
    """List every tensor of a model with its GGUF and Hugging Face names, in the order in which
    gptoss writes a GGUF.
    """
    sizes = dimensions(hparams)
    blocks = (_named(row, i, sizes) for i in range(hparams.num_hidden_layers) for row in BLOCKS)
    return (*(_named(row, 0, sizes) for row in OUTER), *blocks)


def group_by_source(hparams: HParams) -> dict[str, list[NamedTensor]]:
    """Group the table's GGUF tensors by the Hugging Face tensor that holds their values; gate
    before up.
    """
    groups: dict[str, list[NamedTensor]] = {}
    for named in tensors(hparams):
        groups.setdefault(named.sources[0].name, []).append(named)
    return groups


def hf_tensors(hparams: HParams) -> dict[str, HfTensor]:
    """List every tensor that a Hugging Face checkpoint of this size holds, by name."""
    return {source.name: source for tensor in tensors(hparams) for source in tensor.sources}


def parameters(hparams: HParams) -> dict[str, HfTensor]:
    """List a model's parameters as transformers names them, with experts in floats, by name."""
    return {
        tensor.name: tensor
        for named in tensors(hparams)
        for tensor in ((named.floats,) if named.floats else named.sources)
    }


def _named(row: Row, layer: int, sizes: dict[str, int]) -> NamedTensor:
    shape = tuple(sizes[letter] for letter in row.shape)
    whole = shape if row.rows is Rows.ALL else (shape[0], 2 * shape[1], *shape[2:])
    hf = row.hf.replace("{i}", str(layer))
    sources: tuple[HfTensor, ...] = (HfTensor(hf, "BF16", whole),)
    floats = None
    if row.role is TensorRole.EXPERTS:
        floats = HfTensor(hf, "BF16", (whole[0], whole[2], whole[1]))
        *outer, columns = whole
        scales = (*outer, columns // BLOCK)
        blocks = (*scales, BLOCK // 2)
        sources = (HfTensor(hf + "_blocks", "U8", blocks), HfTensor(hf + "_scales", "U8", scales))
    gguf = row.gguf.replace("{i}", str(layer))
    return NamedTensor(gguf, row.role, shape, shape[::-1], row.rows, sources, floats)
