"""The types of the dense matrices: one for all, or another for a group of them.

Eight are known: those that hold BF16 values as they are or nearly so, and the smaller block types
for which the gguf package has a quantizer. ggml's K types are not among them: their blocks take
256 values, and gpt-oss has rows of 2,880.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gguf.constants import GGMLQuantizationType

from gptoss.errors import OptionError


class Dense(StrEnum):
    """The type of a dense matrix."""

    Q8_0 = "q8_0"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"

    @property
    def ggml(self) -> GGMLQuantizationType:
        """Return ggml's type of a dense type: ``Dense.F16`` is number 1 in a GGUF."""
        return GGMLQuantizationType[self.name]


class Group(StrEnum):
    """Dense matrices that can have a type of their own."""

    ATTENTION = "attention"
    EMBEDDING = "embedding"
    OUTPUT = "output"


_GROUPS = {"token_embd.weight": Group.EMBEDDING, "output.weight": Group.OUTPUT}


@dataclass(frozen=True, slots=True)
class DenseTypes:
    """The type of each group."""

    attention: Dense
    embedding: Dense
    output: Dense

    @classmethod
    def choose(cls, dense: str, types: Mapping[str, str] | None = None) -> DenseTypes:
        """Choose the type of every group of dense matrices: ``dense`` for all but those that
        ``types`` names, as in ``{"output": "bf16"}``.

        Raises ``OptionError``, which is a ValueError, when a type is none of ``Dense`` or a group
        none of ``Group``.
        """
        chosen = dict.fromkeys(Group, _type(dense))
        for group, name in (types or {}).items():
            if group not in list(Group):
                raise OptionError(f"no group of tensors is called {group!r}; {_listed(Group)} are")
            chosen[Group(group)] = _type(name)
        return cls(**{group.value: dense for group, dense in chosen.items()})

    def of(self, tensor: str) -> Dense:
        """Return the type chosen for a dense matrix, by its GGUF name ``tensor``: that of its
        group.
        """
        dense: Dense = getattr(self, _GROUPS.get(tensor, Group.ATTENTION))
        return dense

    def to_json(self) -> dict[str, str]:
        """Return the name of the dense type by the name of its group, as plain data for JSON."""
        return {group.value: str(getattr(self, group)) for group in Group}

    def __str__(self) -> str:
        if self.attention is self.embedding is self.output:
            return str(self.attention)
        return ", ".join(f"{group} {dense}" for group, dense in self.to_json().items())


def _type(name: str) -> Dense:
    try:
        return Dense(name)
    except ValueError:
        raise OptionError(f"no dense type is called {name!r}; there are {_listed(Dense)}") from None


def _listed(choices: type[StrEnum]) -> str:
    return ", ".join(choice.value for choice in choices)
