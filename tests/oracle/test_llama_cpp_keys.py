"""The table of keys has every key that llama.cpp's source reads for gpt-oss.

The files below are all that run for it; of other architectures in them only what the source itself
puts behind a condition is left out.
"""

from __future__ import annotations

import re

import pytest

from gptoss.formats.llama_cpp_keys import KEYS, PREFIX
from gptoss.formats.reply_ends import ENDING_KEYS, ENDING_TEXTS
from support import peers

pytestmark = pytest.mark.oracle

FILES = (
    "llama-model.cpp", "llama-model-loader.cpp", "llama-vocab.cpp", "llama.cpp",
    "llama-context.cpp", "llama-graph.cpp", "llama-kv-cache.cpp", "llama-kv-cache-iswa.cpp",
    "models/openai-moe.cpp",
)  # fmt: skip

ELSEWHERE = {
    # Of WavTokenizer alone.
    PREFIX + "features_length", PREFIX + "posnet.embedding_length", PREFIX + "posnet.block_count",
    PREFIX + "convnext.embedding_length", PREFIX + "convnext.block_count",
    # Of the T5 tokenizer alone.
    "tokenizer.ggml.precompiled_charsmap",
    # Only where general.tensor_extra.name is, which the table bans.
    "general.tensor_extra.prec_a4",
}  # fmt: skip


def keys_read() -> set[str]:
    """Each key of which one of the files asks for the value."""
    source = peers.llama_cpp() / "src"
    names = dict(
        re.findall(r'\{\s*(LLM_KV_\w+),\s*"([^"]+)"\s*\}', (source / "llama-arch.cpp").read_text())
    )
    asked = re.compile(r"(?:get_key|get_arr|get_key_or_arr|get_arr_n|llm_kv|\bkv)\(\s*(LLM_KV_\w+)")
    listed = re.compile(r"\{\s*(LLM_KV_TOKENIZER_\w+_ID),\s*special_")
    found: set[str] = set()
    for file in FILES:
        text = (source / file).read_text()
        found |= {*asked.findall(text), *listed.findall(text)}
    return {names[it].replace("%s.", PREFIX) for it in found}


def test_every_key_is_in_the_table() -> None:
    found = keys_read()
    assert len(found) > 60
    assert found - KEYS.keys() == ELSEWHERE


def test_the_search_finds_what_is_known() -> None:
    expected = {
        PREFIX + "attention.causal", PREFIX + "rope.freq_base_swa", "general.name",
        PREFIX + "attention.sliding_window_pattern", "tokenizer.ggml.eot_token_id",
    }  # fmt: skip
    assert expected <= keys_read()


def test_every_end_of_a_reply_is_known() -> None:
    """The texts and the keys of which llama.cpp's source makes ends of a reply."""
    source = (peers.llama_cpp() / "src" / "llama-vocab.cpp").read_text("utf-8")
    parts = (
        ("// find EOT token", "// find FIM_PRE token"),
        ("// find FIM_PAD token", "// auto-detect unused tokens"),
        ("special_eog_ids.clear()", 't.first == "<|channel|>"'),
    )
    texts: set[str] = set()
    for begin, end in parts:
        part = source[source.index(begin) :]
        texts |= set(re.findall(r't\.first == "([^"]+)"', part[: part.index(end)]))
    assert texts == ENDING_TEXTS
    roles = set(re.findall(r"special_eog_ids\.insert\(special_(\w+)_id\)", source))
    assert {f"tokenizer.ggml.{role}_token_id" for role in roles - {"eos"}} == set(ENDING_KEYS)
