"""Where a value or a block scale is within a tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A value's or block scale's position in a tensor of the GGUF, counted from 0.

    In block formats ``block`` counts along the row and ``lane`` within the block, None meaning the
    block's scale; in plain types ``index`` counts along the row. A vector has an ``index`` only.
    """

    expert: int | None = None
    row: int | None = None
    block: int | None = None
    lane: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {at}" for name, at in asdict(self).items() if at is not None)
