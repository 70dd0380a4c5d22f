"""Quantize a GGUF's dense matrices to Q8_0 by llama.cpp's own quantizer; experts stay MXFP4.

    run_llama_cpp_quantize.py IN.gguf OUT.gguf

What its command ``llama-quantize IN.gguf OUT.gguf MXFP4_MOE`` does, called through the library
that llama-cpp-python has built.
"""

from __future__ import annotations

import ctypes
import os
import sys

from llama_cpp import llama_cpp


def main() -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_MXFP4_MOE
    params.nthread = os.cpu_count() or 1
    source, out = (os.fsencode(name) for name in sys.argv[1:])
    sys.exit(llama_cpp.llama_model_quantize(source, out, ctypes.byref(params)))


if __name__ == "__main__":
    main()
