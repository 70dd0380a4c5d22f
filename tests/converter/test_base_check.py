"""The size of an adapter's base, as its name has it."""

from __future__ import annotations

import pytest

from gptoss.converter.lora.base_check import size_in_name


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("openai/gpt-oss-20b", "20b"),
        ("gpt-oss-120b", "120b"),
        ("unsloth/gpt-oss-20b-unsloth-bnb-4bit", "20b"),
        ("unsloth/gpt-oss-120b-BF16", "120b"),
        ("/home/someone/models/gpt_oss_20b_bf16", "20b"),
        ("C:\\models\\GPT-OSS-120B", "120b"),
        ("/models/openai--gpt-oss-20b/snapshots/6cee5e81ee83917806bbde320786a8fb61efebee", "20b"),
        ("gpt-oss:20b", "20b"),
        ("GPT OSS 20B", "20b"),
        ("somewhere/gpt-oss", None),
        ("gpt-oss-6.20b", None),
        ("gpt-oss-20bn", None),
        ("gpt-oss-120b-to-20b", None),
        ("/data/120b/gpt-oss-20b", "20b"),
        ("None", None),
    ],
)
def test_the_size_in_a_name(name: str, size: str | None) -> None:
    assert size_in_name(name) == size
