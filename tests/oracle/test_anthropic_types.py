"""Every event and message of ``/v1/messages`` against the types of Anthropic's own package."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.shared.error_response import ErrorResponse
from pydantic import TypeAdapter

from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.server.anthropic.blocks import BlockWriter, collect_message
from gptoss.runtime.server.anthropic.thinking import Visible
from gptoss.runtime.server.errors import ApiError, error_object
from gptoss.runtime.server.reply import Usage
from support.malformed import GOOD, MALFORMED
from support.tokens import byte_tokenizer

pytestmark = pytest.mark.oracle

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.mark.parametrize("visible", Visible)
@pytest.mark.parametrize("case", [*GOOD, *MALFORMED], ids=lambda case: case.turn)
def test_events_and_messages(case: Any, visible: Visible) -> None:
    writer = BlockWriter("gpt-oss", visible, constrained=False)
    usage = Usage(10, 3, 7, 2)
    events = [writer.start(usage)]
    for event in parse(case.ids, byte_tokenizer()):
        events += writer.write(event)
    events += writer.finish("end_turn", None, usage)
    for written in events:
        EVENT.validate_python(written, strict=True)
    Message.model_validate(collect_message(events), strict=True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_errors(status: int) -> None:
    body = error_object(ApiError(status, "what to do"), "/v1/messages")
    ErrorResponse.model_validate(body, strict=True)
