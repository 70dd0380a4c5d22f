"""``gptoss-run chat`` over a scripted engine: ``python scripted_chat.py SCRIPTS.json [OPTIONS]``.

For tests of the terminal: what the model says is in the file, as ``support.fake_engine`` has it.
``SECONDS`` in the environment is the time that a token takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gptoss.runtime import cli
from gptoss.runtime.chat.model import Model
from gptoss.runtime.terminal import chat_run
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer


def open_scripted(path: Path, **_options: Any) -> Model:
    """A model that says what the file has, one script a round."""
    seconds = float(os.environ.get("SECONDS", "0"))
    scripts = json.loads(path.read_text("utf-8"))
    engine = ScriptedEngine(*scripts, before_token=lambda: time.sleep(seconds))
    return Model(engine, byte_tokenizer())


if __name__ == "__main__":
    setattr(chat_run, "open_model", open_scripted)  # noqa: B010
    sys.argv = ["gptoss-run", "chat", *sys.argv[1:]]
    cli.main()
