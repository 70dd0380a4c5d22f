"""How o200k cuts text into words before any merge; GGUF names this pattern ``gpt-4o``.

Words with at most one leading sign and an English contraction, numbers in threes, signs with
trailing line ends, line ends, other space. A converter must find exactly this pattern in a
tokenizer, and a tokenizer must use it: another one would give other tokens than the model was
trained with. Source: the published tokenizer.json of gpt-oss.
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
