"""``gptoss-quant info``: the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from gptoss import console
from gptoss.quant.info.summary import ModelInfo, info
from gptoss.text import plural


@click.command("info", short_help="Show what a model is: its size, layers, types and settings.")
@click.argument("model", type=console.PATH, metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON, for programs.")
def info_command(model: Path, as_json: bool) -> None:
    """Describe MODEL, a checkpoint folder or a GGUF file.

    Reads only headers; to check the weights, use audit or verify.

    \b
    Examples:
      gptoss-quant info gpt-oss-20b.gguf
      gptoss-quant info gpt-oss-20b --json | jq .hparams

    \b
    Exit codes:
      0    done
      2    MODEL is missing, corrupt, or not gpt-oss
      130  interrupted
    """
    found = info(model)
    console.answer(json.dumps(found.to_json()) if as_json else "\n".join(_lines(found)))


def _lines(model: ModelInfo) -> Iterator[str]:
    sizes = model.hparams
    kind = "GGUF" if model.is_gguf else "checkpoint"
    name = "" if model.name is None else f", named {model.name}"
    yield console.one_line(f"{model.path}: gpt-oss {kind}{name}")
    rows = {
        "size": f"{model.nbytes:,} bytes in {plural(model.files, 'file')}",
        "parameters": f"{model.parameters:,}",
        "layers": f"{sizes.num_hidden_layers}",
        "experts": f"{sizes.num_local_experts} a layer, {sizes.num_experts_per_tok} used a token",
        "hidden size": f"{sizes.hidden_size}; of an expert {sizes.intermediate_size}",
        "attention": f"{plural(sizes.num_attention_heads, 'head')} of {sizes.head_dim}, "
        f"{sizes.num_key_value_heads} for keys and values; "
        f"window {sizes.sliding_window} on even layers",
        "vocabulary": f"{sizes.vocab_size:,} tokens",
        "context": f"{sizes.max_position_embeddings:,} tokens",
        "RoPE": f"theta {sizes.rope_theta:g}, YaRN factor {sizes.yarn_factor:g} from "
        f"{sizes.yarn_original_context:,} tokens",
    }
    width = max(map(len, rows))
    yield from (f"  {label:{width}}  {text}" for label, text in rows.items())
    yield "  types of the tensors:"
    for use in model.types:
        count = plural(use.tensors, "tensor")
        yield f"    {use.group:10}  {use.type:5}  {count:>11}  {use.nbytes:>16,} bytes"
    if model.unread:
        yield console.one_line(
            f"unreadable types or shapes: {plural(len(model.unread), 'tensor')}, "
            f"the first {model.unread[0]}"
        )
    for defect in model.defects[:1]:
        more = f" and {len(model.defects) - 1} more" if len(model.defects) > 1 else ""
        yield console.one_line(f"defect: {defect}{more}; gptoss-quant audit lists what is wrong")
