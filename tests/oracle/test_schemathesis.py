"""The server against its own OpenAPI document: no status 5xx, no answer beside the schema.

In a copy of the document the parameters of each path are the words of ``EXISTING``, which become
the ids of objects that are there: otherwise every retrieval would answer 404.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from gptoss.runtime.engine.base import Sampler
from gptoss.runtime.server.app import DOCUMENT
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.server import KEY, listening, scripted

pytestmark = pytest.mark.oracle

EXAMPLES = 40
EXISTING = ("first", "second")
THOUGHT = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
ANSWER = f"{THOUGHT}<|channel|>final<|message|>4<|return|>"


class Endless(ScriptedEngine):
    """Answers every prompt with the same turn."""

    def generate(self, prompt: Sequence[int], sampler: Sampler, **options: Any) -> FakeGeneration:
        self._scripts = iter([ANSWER])
        self.prompts.clear()
        self.generations.clear()
        return super().generate(prompt, sampler, **options)


class Objects:
    """Makes what an operation's path names: responses, conversations and their items."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"x-api-key": KEY}, timeout=60)

    def path_parameters(self, names: Mapping[str, str]) -> dict[str, str]:
        """The parameters of a path, with the ids of new objects for the words of ``EXISTING``."""
        ids = self._conversation() if "conversation_id" in names else {}
        if "response_id" in names:
            asked = {"input": "2 + 2?", "background": names["response_id"] == "second"}
            ids["response_id"] = self._post("/v1/responses", asked)["id"]
        ids |= {"name": "tiny", "reply_id": "reply"}
        return {name: ids[name] if it in EXISTING else it for name, it in names.items()}

    def _conversation(self) -> dict[str, str]:
        items = [{"role": "user", "content": f"{i} + {i}?"} for i in range(3)]
        made = self._post("/v1/conversations", {"items": items})["id"]
        listed = self._client.get(f"/v1/conversations/{made}/items").json()
        return {"conversation_id": made, "item_id": listed["last_id"]}

    def _post(self, path: str, asked: dict[str, Any]) -> Any:
        return self._client.post(path, json=asked).json()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(lambda: scripted(Endless())) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def objects(url: str) -> Objects:
    return Objects(url)


def with_existing() -> dict[str, Any]:
    """The document, with words for objects that are there, and one for an object that is not."""
    document = copy.deepcopy(DOCUMENT)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/messages"):  # there the model must be named
                body = operation["requestBody"]["content"]["application/json"]["schema"]
                body["properties"]["model"] = {"enum": ["tiny"]}
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = {"enum": [*EXISTING, "nothing"]}
    return document


def left_out(case: Any) -> list[Any]:
    """Checks that would be wrong for a case. Rules between fields (a result needs its call, echo
    excludes logprobs) are in no schema; nothing is refused for a header that nobody reads.
    """
    parts = {} if case.meta is None else case.meta.components
    wrong = any(
        parts[it].mode == GenerationMode.NEGATIVE
        for it in (ParameterLocation.BODY, ParameterLocation.QUERY)
        if it in parts
    )
    return [positive_data_acceptance, *([] if wrong else [negative_data_rejection])]


found: defaultdict[str, set[int]] = defaultdict(set)
schema = schemathesis.openapi.from_dict(with_existing())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_every_operation(case: Any, url: str, objects: Objects) -> None:
    if case.path_parameters:
        case.path_parameters = objects.path_parameters(case.path_parameters)
    response = case.call_and_validate(
        base_url=url,
        headers={"Authorization": f"Bearer {KEY}"},
        excluded_checks=left_out(case),
    )
    found[case.operation.label].add(response.status_code)


def test_every_object_was_found() -> None:
    """Retrieving, changing and deleting found what they asked for."""
    assert len(found) == sum(len(it) for it in DOCUMENT["paths"].values())
    missed = {label for label, statuses in found.items() if "{" in label and 200 not in statuses}
    # No reply is under way while another request is made.
    assert missed == {"POST /v1/replies/{reply_id}/answer-now"}
