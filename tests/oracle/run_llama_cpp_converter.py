"""Run llama.cpp's own converter on several checkpoints in one process.

    run_llama_cpp_converter.py LLAMA_CPP_FOLDER JOBS.json

``JOBS.json`` holds a list of [checkpoint, outtype, output, pre, further arguments ...]. All run in
one process, because importing torch and transformers takes longer than a small conversion. That
converter identifies a tokenizer by a hash of the tokens of a test text, so it knows none with a
small vocabulary: a ``pre`` that is not null replaces that look-up. Nothing else is changed.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    llama_cpp, jobs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    converter = importlib.import_module("convert_hf_to_gguf")
    model = importlib.import_module("conversion.base").TextModel
    look_up = model.get_vocab_base_pre
    for checkpoint, outtype, output, pre, *more in jobs:
        model.get_vocab_base_pre = look_up if pre is None else lambda *_, pre=pre: pre
        sys.argv = [
            "convert_hf_to_gguf.py", "--outtype", outtype, "--outfile", output, *more, checkpoint
        ]  # fmt: skip
        converter.main()


if __name__ == "__main__":
    main()
