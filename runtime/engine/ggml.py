"""ggml's functions that llama-cpp-python does not declare: devices, and the types of their
buffers.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from gptoss.runtime.engine.devices import Device, Kind
from gptoss.runtime.engine.library import ggml_library, lib
from gptoss.text import printable

AMX = "AMX"
REPACK = "CPU_REPACK"
_EXPERTS = r"\.ffn_(up|down|gate)_exps\.weight$"


@cache
def device_functions() -> Any:
    """Return ggml's device functions with their types declared, by name without
    ``ggml_backend_``.
    """
    lib.llama_backend_init()
    base, registry = ggml_library("ggml-base"), ggml_library("ggml")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures: dict[ctypes.CDLL, dict[str, tuple[Any, list[Any]]]] = {
        registry: {
            "ggml_backend_dev_count": (size, []),
            "ggml_backend_dev_get": (pointer, [size]),
            "ggml_backend_reg_by_name": (pointer, [ctypes.c_char_p]),
            "ggml_backend_load": (pointer, [ctypes.c_char_p]),
        },
        base: {
            "ggml_backend_dev_name": (ctypes.c_char_p, [pointer]),
            "ggml_backend_dev_description": (ctypes.c_char_p, [pointer]),
            "ggml_backend_dev_type": (ctypes.c_int, [pointer]),
            "ggml_backend_dev_memory": (
                None,
                [pointer, ctypes.POINTER(size), ctypes.POINTER(size)],
            ),
            "ggml_backend_dev_backend_reg": (pointer, [pointer]),
            "ggml_backend_reg_get_proc_address": (pointer, [pointer, ctypes.c_char_p]),
            "ggml_backend_reg_dev_get": (pointer, [pointer, size]),
            "ggml_backend_buft_name": (ctypes.c_char_p, [pointer]),
            "ggml_backend_dev_buffer_type": (pointer, [pointer]),
            "ggml_backend_cpu_buffer_type": (pointer, []),
        },
    }
    found = {}
    for library, functions in signatures.items():
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            found[name.removeprefix("ggml_backend_")] = function
    return type("Functions", (), {name: staticmethod(f) for name, f in found.items()})


def _handles() -> list[int]:
    functions = device_functions()
    return [functions.dev_get(i) for i in range(functions.dev_count())]


def list_devices() -> tuple[Device, ...]:
    """Return ggml's devices with the memory that each has free now; the CPU is one of them."""
    return tuple(_device(handle) for handle in _handles())


def _device(handle: int) -> Device:
    functions = device_functions()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    functions.dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        printable(functions.dev_name(handle).decode("utf-8", "replace")),
        printable(functions.dev_description(handle).decode("utf-8", "replace")),
        list(Kind)[functions.dev_type(handle)],
        free.value,
        total.value,
    )


def gpu_handles() -> dict[str, int]:
    """Return ggml's handles of this machine's devices by their names."""
    return {_device(handle).name: handle for handle in _handles()}


@cache
def extra_buffer_types() -> dict[str, int]:
    """Return the addresses of ggml's CPU buffer types that repack weights, by name."""
    functions = device_functions()
    cpu = functions.reg_by_name(b"CPU")
    address = functions.reg_get_proc_address(cpu, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return {}
    get = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
    types: dict[str, int] = {}
    for handle in get(_handles()[0]):
        if handle is None:
            break
        types[functions.buft_name(handle).decode()] = handle
    return types


def can_repack() -> bool:
    """Report whether ggml has a faster order of MXFP4 experts for this processor."""
    features = lib.llama_print_system_info().decode("utf-8", "replace")
    known = any(f"{feature} = 1" in features for feature in ("AVX2", "DOTPROD"))
    return known and REPACK in extra_buffer_types()


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def buffer_overrides(n_cpu_experts: int, *, repack: bool) -> tuple[Any, bool]:
    """Return llama.cpp's ``tensor_buft_overrides`` and ``use_extra_bufts`` for a model.

    Where the processor has AMX, llama.cpp repacks dense Q8_0 for it too, and ends the process at
    the first decode (llama-cpp-python 0.3.36): there only the experts get the buffer type that
    repacks.
    """
    types = extra_buffer_types()
    overrides = []
    if n_cpu_experts:
        cpu = device_functions().dev_buffer_type(_cpu_handle())
        pattern = rf"^blk\.({'|'.join(map(str, range(n_cpu_experts)))}){_EXPERTS}"
        kept = types.get(REPACK) if repack and AMX in types else None
        overrides.append(_Override(pattern.encode(), kept or cpu))
    elif repack and AMX in types:
        overrides.append(_Override(_EXPERTS.encode(), types.get(REPACK)))
    terminated = (_Override * (len(overrides) + 1))(*overrides, _Override(None, None))
    return terminated, repack and AMX not in types


def _cpu_handle() -> int:
    functions = device_functions()
    return next(h for h in _handles() if functions.dev_type(h) == list(Kind).index(Kind.CPU))
