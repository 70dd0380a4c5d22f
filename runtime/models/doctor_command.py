"""``gptoss-run doctor``: whether llama.cpp works here, and how to get it for a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from gptoss import console
from gptoss.runtime.models.doctor import Diagnosis, diagnose
from gptoss.runtime.models.engine_options import pop_engine_options, rpc_options


@click.command("doctor")
@rpc_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor_command(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Check llama.cpp: its build, devices and memory.

    It loads the library in a process of its own, decodes a token on each device, and looks for
    other copies of the library. It prints the commands that reinstall it for the GPUs of this
    system (CUDA and Vulkan, or Metal) and for models over several machines (RPC). With --rpc it
    also decodes a token on each server.

    \b
    Exit codes:
      0    it works
      1    something is wrong
      2    the request is invalid
    """
    engine = pop_engine_options(options)
    found = diagnose(engine.get("rpc", ()), rpc_insecure=engine.get("rpc_insecure", False))
    if as_json:
        console.answer(json.dumps(asdict(found) | {"healthy": found.healthy}))
    else:
        console.answer_lines(_lines(found))
        # Not wrapped: a command that is copied has to be one line.
        console.answer("\n".join(f"for {name}: {line}" for name, line in found.reinstall.items()))
    if not found.healthy:
        context.exit(console.ExitCode.NO)


def _lines(it: Diagnosis) -> list[str]:
    lines = [f"llama-cpp-python {it.version}, Python {it.python}"]
    if it.found:
        lines.append(f"libraries: {it.found['folder']}")
        lines.append(f"features: {it.found['features'].strip(' |')}")
        lines.append("RPC: yes" if it.found["rpc"] else "RPC: not in this build")
        for device in it.found["devices"]:
            memory = f"{device['free'] / 1e9:.1f} of {device['total'] / 1e9:.1f} GB free"
            name = f"{device['name']} ({device['description']}, {device['kind']})"
            lines.append(f"{name}: {memory}, decodes: {device['decode']}")
    lines += [f"problem: {problem}" for problem in it.problems]
    lines += it.hints
    return lines
