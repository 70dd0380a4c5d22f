"""The server against its own OpenAPI document: no status 5xx, no answer beside the schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from gptoss.runtime.engine.base import Sampler
from gptoss.runtime.server.app import DOCUMENT
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.server import KEY, listening, scripted

pytestmark = pytest.mark.oracle

EXAMPLES = 60
THOUGHT = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
ANSWER = f"{THOUGHT}<|channel|>final<|message|>4<|return|>"
schema = schemathesis.openapi.from_dict(DOCUMENT)


class Endless(ScriptedEngine):
    """Answers every prompt with the same turn."""

    def generate(self, prompt: Sequence[int], sampler: Sampler, **options: Any) -> FakeGeneration:
        self._scripts = iter([ANSWER])
        self.prompts.clear()
        self.generations.clear()
        return super().generate(prompt, sampler, **options)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(lambda: scripted(Endless())) as (host, port):
        yield f"http://{host}:{port}"


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_every_operation(case: Any, url: str) -> None:
    case.call_and_validate(
        base_url=url,
        headers={"Authorization": f"Bearer {KEY}"},
        # Rules between fields (a result needs its call, echo excludes logprobs) are in no schema.
        excluded_checks=[positive_data_acceptance],
    )
