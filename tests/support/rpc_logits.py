"""``python -m support.rpc_logits FILE``: logits of the project's engine, local and over RPC.

Reads one JSON object of ``EngineSettings`` per line and writes for each a line with the logits
(float32, hexadecimal) of the last token of a prompt and of each token decoded after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

N_PROMPT = 200
"""Tokens of the prompt; the sliding window has 128."""
N_MORE = 8


def main(path: str) -> None:
    from gptoss.runtime.engine.context import Chunk
    from gptoss.runtime.engine.llama_cpp import LlamaContext
    from gptoss.runtime.engine.loader import load
    from gptoss.runtime.engine.settings import EngineSettings

    for line in sys.stdin:
        settings = EngineSettings(**{k: _frozen(v) for k, v in json.loads(line).items()})
        context = LlamaContext(load(Path(path), settings, lambda _: None))
        rows = []
        position = 0
        for tokens in ([7 * i % 250 for i in range(N_PROMPT)], *([11 * i] for i in range(N_MORE))):
            assert context.decode([Chunk(0, position, tokens, 1)])
            rows.append(context.logits(0).copy())
            position += len(tokens)
        context.free()
        print(np.stack(rows).tobytes().hex(), flush=True)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main(sys.argv[1])
