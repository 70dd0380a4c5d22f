"""How o200k splits text into pieces before merging; GGUF calls this pattern ``gpt-4o``.

The pieces are words with at most one leading symbol and an English contraction, up to three digits,
symbols with trailing line ends, line ends, and other white space. A converter must find exactly
this pattern in a tokenizer, and a tokenizer must use it: another one gives other tokens than the
model was trained with. Source: the published tokenizer.json of gpt-oss.

Pieces are then encoded byte-level as in GPT-2: each byte is one printable character. Every one of
the 256 bytes must be a token, because a text may contain any of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from gptoss.errors import quoted

PRE_TOKENIZER = "gpt-4o"
"""``tokenizer.ggml.pre`` of a GGUF."""

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

O200K_PATTERN = "|".join(
    (
        f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


_SPLIT: Mapping[str, object] = {
    "type": "Split",
    "pattern": {"Regex": O200K_PATTERN},
    "behavior": "Isolated",
}
_SPELL: Mapping[str, object] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


_CHANGE_TOKENS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
"""Settings of a BPE model with which a text becomes other tokens; llama.cpp knows none of them."""


def find_tokenizer_problem(tokenizer: Mapping[str, object]) -> str | None:
    """Find why a tokenizer.json would make other tokens than gpt-oss's o200k tokenizer; None if it
    does not.

    Its vocabulary and merges are not looked at.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return "no BPE model; gpt-oss has a byte-level BPE tokenizer"
    if tokenizer.get("normalizer") is not None:
        return "has a normalizer; gpt-oss takes text as it is"
    for key in _CHANGE_TOKENS:
        if model.get(key):
            return f"model.{key} is {quoted(model[key])}; gpt-oss has none"
    problem = _find_split_problem(tokenizer.get("pre_tokenizer"))
    return problem and f"does not split text as o200k does: {problem}"


def _find_split_problem(pre_tokenizer: object) -> str | None:
    """Find how a tokenizer.json's ``pre_tokenizer`` splits text differently from o200k's pattern;
    None if alike.

    It must have two steps: split by this pattern, keeping every piece, then encode byte-level.
    Other steps or settings give other tokens than the model was trained with.
    """
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(pre_tokenizer, dict) or not isinstance(steps, list):
        return "pre_tokenizer is not a sequence of Split and ByteLevel"
    types = [step.get("type") if isinstance(step, dict) else None for step in steps]
    if pre_tokenizer.get("type") != "Sequence" or types != ["Split", "ByteLevel"]:
        return f"pre_tokenizer has the steps {quoted(types)}; expected Split, ByteLevel"
    for step, wanted in zip(steps, (_SPLIT, _SPELL), strict=True):
        for key, value in wanted.items():
            if step.get(key) != value:
                found = quoted(step.get(key))
                shown = "o200k's" if key == "pattern" else repr(value)
                return f"pre_tokenizer's {wanted['type']} has {key} {found}; expected {shown}"
    inverted = steps[0].get("invert")
    if inverted not in (None, False):
        return f"pre_tokenizer's Split has invert {quoted(inverted)}; expected False"
    return None


def _byte_level() -> dict[int, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: b for b in printable} | {0x100 + i: b for i, b in enumerate(others)}


BYTE_LEVEL = _byte_level()
"""Code point in a byte-level vocabulary → the byte it spells.

GPT-2's mapping: printable Latin-1 bytes map to themselves, the 68 others to U+0100 and up.
"""
