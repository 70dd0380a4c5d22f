"""Names of experts stored as one module per expert.

transformers stores all experts of a layer in one parameter, ``mlp.experts.gate_up_proj`` or
``mlp.experts.down_proj``. Tools that need ``torch.nn.Linear`` modules split it:

- Unsloth: ``mlp.experts.gate_up_projs.N`` and ``mlp.experts.down_projs.N``;
- Tinker's PEFT export, vLLM, llm-compressor: ``mlp.experts.N.gate_proj``, ``.up_proj`` and
  ``.down_proj``. Gate is the even rows of ``gate_up_proj``, up the odd ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptoss.formats.tensor_map import Rows

_NUMBER = r"0|[1-9]\d{0,5}"
_MODULE = re.compile(
    r"(?P<experts>model\.layers\.\d{1,6}\.mlp\.experts)\."
    rf"(?:(?P<fused>gate_up|down)_projs\.(?P<n>{_NUMBER})"
    rf"|(?P<m>{_NUMBER})\.(?P<part>gate|up|down)_proj)"
)
_ROWS = {"gate": Rows.EVEN, "up": Rows.ODD}


@dataclass(frozen=True, slots=True)
class ExpertModule:
    """``rows`` of expert number ``expert``; ``parameter`` is transformers' name for all experts."""

    parameter: str
    expert: int
    rows: Rows


def parse_expert_module(name: str) -> ExpertModule | None:
    """Parse a module name that holds a single expert, such as ``experts.3.gate_proj``; None for any
    other name.
    """
    found = _MODULE.fullmatch(name)
    if found is None:
        return None
    part = found["part"] or found["fused"]
    projection = "down_proj" if part == "down" else "gate_up_proj"
    return ExpertModule(
        f"{found['experts']}.{projection}",
        int(found["n"] or found["m"]),
        _ROWS.get(part, Rows.ALL),
    )
