"""What llama.cpp makes of GGUF files, found out in a child process: a bad file may end it.

``python -m support.llama_child`` reads one path a line and answers each with one line of JSON:
the logits after a prompt longer than the sliding window and after each of four more tokens, or
what llama.cpp refused. The settings are those of the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_PROMPT = 160
"""Tokens of the prompt; the sliding window has 128."""
N_MORE = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """``logits`` (1 + N_MORE, vocabulary) float32 when llama.cpp computed the model; else
    ``refused`` says why it did not, or ``signal`` which one ended the process."""

    logits: NDArray[np.float32] | None = None
    refused: str | None = None
    signal: int | None = None


def run_files(paths: Sequence[Path], n_prompt: int = N_PROMPT) -> list[Outcome]:
    """One outcome for each file; a child that a signal ends is replaced by another one."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(paths):
        outcomes += _run_child(paths[len(outcomes) :], n_prompt)
    return outcomes


def _run_child(paths: Sequence[Path], n_prompt: int) -> Iterator[Outcome]:
    child = subprocess.run(
        [sys.executable, "-m", "support.llama_child", str(n_prompt)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        env=os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    answers = child.stdout.splitlines()
    for line in answers:
        answer = json.loads(line)
        if "refused" in answer:
            yield Outcome(refused=answer["refused"])
        else:
            yield Outcome(np.array(answer["logits"], np.float32))
    if len(answers) < len(paths):
        assert child.returncode < 0, child.stderr
        yield Outcome(signal=-child.returncode)


def _serve(n_prompt: int) -> None:
    import llama_cpp.llama_cpp as lib

    errors: list[str] = []

    def log(level: int, text: bytes, _: object) -> None:
        if level == 4:
            errors.append(text.decode(errors="replace").strip())

    callback = lib.llama_log_callback(log)
    lib.llama_log_set(callback, None)
    lib.llama_backend_init()
    for line in sys.stdin:
        errors.clear()
        answer = _decode(line.rstrip("\n"), n_prompt)
        print(json.dumps(answer or {"refused": "; ".join(errors)}), flush=True)


def _decode(path: str, n_prompt: int) -> dict[str, list[list[float]]] | None:
    import llama_cpp.llama_cpp as lib

    params = lib.llama_model_default_params()
    params.use_extra_bufts = False
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        return None
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 512, 512, 512
    settings.n_threads = settings.n_threads_batch = 1
    settings.swa_full = False
    context = lib.llama_init_from_model(model, settings)
    if not context:
        lib.llama_model_free(model)
        return None
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    tokens = [7 * i % min(n_vocab, 256) for i in range(n_prompt)]
    rows: list[list[float]] = []
    for i in range(1 + N_MORE):
        batch = tokens if i == 0 else [11 * i % n_vocab]
        array = (lib.llama_token * len(batch))(*batch)
        if lib.llama_decode(context, lib.llama_batch_get_one(array, len(batch))) != 0:
            rows = []
            break
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
        rows.append(row.astype(float).tolist())
    lib.llama_free(context)
    lib.llama_model_free(model)
    return {"logits": rows} if rows else None


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
