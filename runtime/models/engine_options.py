"""The command line's options for the engine, the same for every command that loads a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import click

from gptoss.runtime.engine.settings import (
    EngineOptions,
    FlashAttention,
    KvType,
    Lora,
    Repack,
)

_RPC_OPTIONS = (
    click.option(
        "--rpc",
        metavar="HOST:PORT,...",
        help="RPC servers of llama.cpp that hold a part of the model; only at loopback addresses, "
        "such as the end of a tunnel to another machine.",
    ),
    click.option(
        "--rpc-insecure",
        is_flag=True,
        help="Allow RPC servers at other addresses: RPC has no authentication and no encryption.",
    ),
)

_OPTIONS = (
    click.option(
        "--ctx",
        "--context",
        "n_ctx",
        type=int,
        metavar="N",
        help="Context in tokens for each chat.  [default: 32768, or less if the model or the "
        "memory has less]",
    ),
    click.option(
        "--kv-type",
        type=click.Choice(get_args(KvType)),
        help="Type of the keys and values in the context.  [default: f16, or smaller if memory is "
        "short]",
    ),
    click.option(
        "--batch", "n_batch", type=int, metavar="N", help="Prompt tokens decoded in one call."
    ),
    click.option(
        "--threads",
        "n_threads",
        type=int,
        metavar="N",
        help="CPU threads.  [default: number of physical cores]",
    ),
    click.option(
        "--repack",
        type=click.Choice(get_args(Repack)),
        help="Copy the experts into an order that this processor computes faster.",
    ),
    click.option(
        "--gpu",
        "gpus",
        multiple=True,
        metavar="NAME",
        help="A GPU to use, as gptoss-run doctor names it. Repeatable.  [default: all]",
    ),
    click.option(
        "--gpu-layers",
        "n_gpu_layers",
        type=int,
        metavar="N",
        help="Layers to offload to the GPU.  [default: as many as fit]",
    ),
    click.option(
        "--cpu-experts",
        "n_cpu_experts",
        type=int,
        metavar="N",
        help="Keep the experts of the first N layers on the CPU.",
    ),
    click.option(
        "--flash-attention",
        type=click.Choice(get_args(FlashAttention)),
        help="Flash attention.  [default: auto]",
    ),
    click.option(
        "--lora",
        "loras",
        multiple=True,
        metavar="FILE[:SCALE]",
        help="A LoRA adapter as a GGUF to apply. Repeatable.",
    ),
    *_RPC_OPTIONS,
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the engine's options to a command; ``pop_engine_options`` takes them out again."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def rpc_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add only the options that name RPC servers; ``pop_engine_options`` takes them out again."""
    for option in reversed(_RPC_OPTIONS):
        command = option(command)
    return command


def flags_of(names: Iterable[str]) -> list[str]:
    """Return the options of the command that runs as they are typed, by the names of its arguments:
    ``--ctx`` for ``n_ctx``.
    """
    params = click.get_current_context().command.params
    typed = {it.name: it.opts[0] for it in params if it.name is not None}
    return sorted(typed[name] for name in names)


def pop_engine_options(arguments: dict[str, Any]) -> EngineOptions:
    """Remove the engine's options from a command's arguments, and return those that were given."""
    options = EngineOptions()
    for name in EngineOptions.__annotations__.keys() & arguments.keys():
        value = arguments.pop(name)
        if name == "loras":
            options["loras"] = tuple(_lora(spec) for spec in value)
        elif name == "gpus":
            options["gpus"] = value or None
        elif name == "rpc":
            options["rpc"] = () if value is None else tuple(value.split(","))
        elif value is not None:
            options[name] = value  # type: ignore[literal-required]  # a key of EngineOptions
    return options


def _lora(spec: str) -> Lora:
    """Read ``FILE`` or ``FILE:SCALE``."""
    path, colon, scale = spec.rpartition(":")
    try:
        return Lora(Path(path), float(scale)) if colon else Lora(Path(spec))
    except ValueError:  # the colon belongs to the path
        return Lora(Path(spec))
