"""How o200k cuts text into words before any merge; GGUF names this pattern ``gpt-4o``.

Words with at most one leading sign and an English contraction, numbers in threes, signs with
trailing line ends, line ends, other space. A converter must find exactly this pattern in a
tokenizer, and a tokenizer must use it: another one would give other tokens than the model was
trained with. Source: the published tokenizer.json of gpt-oss.

Words are then spelled byte-level, as GPT-2 has it: each byte as one printable character. The 256
bytes must be tokens themselves, for a text may hold any of them.
"""

from __future__ import annotations

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


def splits_as_o200k(pre_tokenizer: object) -> bool:
    """Whether a tokenizer.json's ``pre_tokenizer`` cuts by this pattern, then spells byte-level."""
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    steps = [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []
    patterns = [s["pattern"].get("Regex") for s in steps if isinstance(s.get("pattern"), dict)]
    return patterns == [O200K_PATTERN] and any(s.get("type") == "ByteLevel" for s in steps)


def _byte_level() -> dict[int, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: b for b in printable} | {0x100 + i: b for i, b in enumerate(others)}


BYTE_LEVEL = _byte_level()
"""Code point in a byte-level vocabulary → the byte it stands for.

GPT-2's spelling: printable Latin-1 bytes stand for themselves, the 68 others for U+0100 on.
"""
