"""Harm to what is not in MXFP4, to tensors as a whole, to keys and to the files beside."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from support import safetensors_files
from support.defects.patient import Expected, Patient

# --- what is not in MXFP4 ---------------------------------------------------------------------


def _bf16(value: float) -> int:
    return int(np.float32(value).view(np.uint32)) >> 16


def _one_value(patient: Patient, ending: str, value: float) -> Expected:
    name, region = patient.pick(ending)
    bits = region.read()
    at = tuple(int(patient.rng.integers(n)) for n in bits.shape)
    bits[at] = _bf16(value)
    region.write(bits)
    row = at[0] if len(at) == 2 else None
    return Expected(name, row=row, index=at[-1])


def infinite_weight(patient: Patient) -> Expected:
    return _one_value(patient, "self_attn.k_proj.weight", float("inf"))


def nan_in_norm(patient: Patient) -> Expected:
    return _one_value(patient, "input_layernorm.weight", float("nan"))


def nan_in_sinks(patient: Patient) -> Expected:
    return _one_value(patient, "self_attn.sinks", float("nan"))


def huge_weight(patient: Patient) -> Expected:
    expected = _one_value(patient, "lm_head.weight", 1e20)
    return Expected(expected.tensor)


def hole_in_dense(patient: Patient) -> Expected:
    return patient.overwrite("q_proj.weight", bytes(1024))


def zero_matrix(patient: Patient) -> Expected:
    name, region = patient.pick("o_proj.weight")
    region.write(np.zeros(region.shape, region.dtype))
    return Expected(name)


def silent_norm(patient: Patient) -> Expected:
    name, region = patient.pick("post_attention_layernorm.weight")
    region.write(np.full(region.shape, _bf16(1e-6), region.dtype))
    return Expected(name)


def greedy_sink(patient: Patient) -> Expected:
    return _one_value(patient, "self_attn.sinks", 5000)


def _router_row(patient: Patient, ending: str, value: float) -> Expected:
    """Give one expert's row of the router, or its bias, that value throughout."""
    name, region = patient.pick(ending)
    bits = region.read()
    expert = int(patient.rng.integers(len(bits)))
    bits[expert] = _bf16(value)
    region.write(bits)
    return Expected(name, expert)


def loud_router(patient: Patient) -> Expected:
    return _router_row(patient, "router.weight", 2000)


def router_that_forgot_an_expert(patient: Patient) -> Expected:
    return _router_row(patient, "router.weight", 0)


def router_that_shuns_an_expert(patient: Patient) -> Expected:
    return _router_row(patient, "router.bias", -1000)


def router_with_two_rows_alike(patient: Patient) -> Expected:
    name, region = patient.pick("router.weight")
    bits = region.read()
    bits[3] = bits[1]
    region.write(bits)
    return Expected(name, 3)


# --- tensors and keys as a whole --------------------------------------------------------------


def missing_tensor(patient: Patient) -> Expected:
    name, region = patient.pick("self_attn.sinks")
    contents = safetensors_files.load(region.path)
    del contents[name]
    safetensors_files.save(region.path, contents)
    return Expected(name)


def foreign_tensor(patient: Patient) -> Expected:
    _, region = patient.pick("q_proj.weight")
    contents = safetensors_files.load(region.path)
    name = "model.layers.0.self_attn.q_norm.weight"
    contents[name] = ("BF16", [2, 4], bytes(16))
    safetensors_files.save(region.path, contents)
    return Expected(name)


def misshapen_tensor(patient: Patient) -> Expected:
    name, region = patient.pick("k_proj.weight")
    contents = safetensors_files.load(region.path)
    dtype, shape, raw = contents[name]
    contents[name] = (dtype, shape[::-1], raw)
    safetensors_files.save(region.path, contents)
    return Expected(name)


def _config(patient: Patient, change: Callable[[dict[str, object]], object]) -> None:
    path = patient.path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def config_without_rope(patient: Patient) -> Expected:
    _config(patient, lambda config: config.pop("rope_parameters"))
    return Expected("rope_scaling")


def ends_without_return(patient: Patient) -> Expected:
    path = patient.path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [3, 4]}))
    return Expected("generation_config.json")


def another_split(patient: Patient) -> Expected:
    path = patient.path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\s+"
    path.write_text(json.dumps(tokenizer))
    return Expected("tokenizer.json")


def _header(patient: Patient, old: bytes, new: bytes) -> None:
    raw = patient.path.read_bytes()
    assert raw.count(old) == 1
    patient.path.write_bytes(raw.replace(old, new))


def key_lost(patient: Patient) -> Expected:
    keys = ("freq_base", "scaling.factor", "scaling.type", "scaling.original_context_length")
    key = "gpt-oss.rope." + keys[patient.rng.integers(len(keys))]
    name = len(key).to_bytes(8, "little") + key.encode()
    _header(patient, name, name[:8] + b"?" + name[9:])
    return Expected(key)


def template_lost(patient: Patient) -> Expected:
    _header(patient, b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    return Expected("tokenizer.chat_template")


def end_token_lost(patient: Patient) -> Expected:
    _header(patient, b"<|return|>", b"<|returX|>")
    return Expected("tokenizer.ggml.tokens")


def another_end(patient: Patient) -> Expected:
    """The file says that a reply ends at another token."""
    key = b"tokenizer.ggml.eos_token_id"
    raw = patient.path.read_bytes()
    at = raw.index(key) + len(key) + 4
    patient.path.write_bytes(raw[:at] + (263).to_bytes(4, "little") + raw[at + 4 :])
    return Expected(key.decode())


def controls_as_words(patient: Patient) -> Expected:
    """All tokens are said to be words, so a text can spell a turn."""
    key = b"tokenizer.ggml.token_type"
    raw = patient.path.read_bytes()
    at = raw.index(key) + len(key) + 8
    n = int.from_bytes(raw[at : at + 8], "little")
    types = np.ones(n, "<i4").tobytes()
    patient.path.write_bytes(raw[: at + 8] + types + raw[at + 8 + len(types) :])
    return Expected(key.decode())


def another_pre_tokenizer(patient: Patient) -> Expected:
    _header(patient, b"gpt-4o", b"llama3")
    return Expected("tokenizer.ggml.pre")
