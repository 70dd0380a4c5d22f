"""Replies of any kind as events of the Responses API: always a valid sequence."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gptoss.runtime.engine.base import PromptProgress
from gptoss.runtime.harmony.events import End, MessageEnded, RoundEnded
from gptoss.runtime.harmony.messages import Function, Namespace, Role
from gptoss.runtime.harmony.parser import Parser, parse
from gptoss.runtime.sampling.logprobs import Alternative, TokenLogprob
from gptoss.runtime.server.reply import TokenSampled
from gptoss.runtime.server.responses.tools import Tools
from gptoss.runtime.server.responses.writer import ResponseWriter, written
from support.malformed import GOOD, MALFORMED, Case
from support.random_turns import Sequences
from support.responses import check_events
from support.tokens import byte_tokenizer, spell

TOOLS = Tools(
    (Function("f"), Function("patch", takes_text=True)),
    (Namespace("crm", (Function("find"), Function("write", takes_text=True))),),
)
CONTROL = byte_tokenizer().control
ENDS = frozenset(CONTROL[it] for it in ("<|return|>", "<|call|>", "<|endoftext|>", "<|end|>"))


def output_of(ids: list[int], seal: bool = False) -> list[dict[str, Any]]:
    """The items of a reply; its events are held to their order."""
    writer = ResponseWriter(TOOLS, (lambda m: f"sealed {m.text}") if seal else None, ENDS)
    events = written(writer, [PromptProgress(1, 1, 0), *parse(ids, byte_tokenizer())])
    response = {"id": "resp_1", "output": writer.output, "status": "completed"}
    whole = [
        {"type": "response.created", "response": response},
        *events,
        {"type": "response.completed", "response": response},
    ]
    check_events([event | {"sequence_number": i} for i, event in enumerate(whole)])
    json.dumps(whole).encode()
    return writer.output


def kinds(turn: str) -> list[tuple[str, ...]]:
    """The items of a turn: type, name or phase, text, status."""
    found: list[tuple[str, ...]] = []
    for item in output_of(spell(turn)):
        what = item.get("name") or item.get("phase") or ""
        text = item["content"][0]["text"] if "content" in item else ""
        text = text or item.get("arguments") or item.get("input") or ""
        found.append((item["type"], what, text, item["status"]))
    return found


@pytest.mark.parametrize("case", GOOD + MALFORMED, ids=lambda case: case.turn[:40])
def test_good_and_malformed_turns(case: Case) -> None:
    output = output_of(case.ids)
    # What the person reads is what the parser took for the answer.
    told = [
        event.message.text
        for event in parse(case.ids, byte_tokenizer())
        if isinstance(event, MessageEnded)
        and event.message.role == Role.ASSISTANT
        and event.message.channel == "final"
        and event.message.recipient is None
        and event.message.text
    ]
    phases = [item["content"][0]["text"] for item in output if item.get("phase") == "final_answer"]
    assert [text for text in phases if text] == told


def test_any_sequence_of_tokens() -> None:
    draw = Sequences(byte_tokenizer())
    rng = random.Random(7)
    for _ in range(1500):
        output_of(draw.draw(rng))


def test_parts_of_a_turn() -> None:
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.f json<|message|>{"a": 1}<|call|>'
    assert kinds(thought + preamble + call) == [
        ("reasoning", "", "Hm.", "completed"),
        ("message", "commentary", "I look.", "completed"),
        ("function_call", "f", '{"a": 1}', "completed"),
    ]
    assert kinds("<|channel|>final<|message|>4<|return|>") == [
        ("message", "final_answer", "4", "completed")
    ]


def test_namespaces_and_custom_tools() -> None:
    turn = "<|channel|>commentary to={}<|message|>x y<|call|>"
    [item] = output_of(spell(turn.format("crm.find")))
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "crm", "find")
    [item] = output_of(spell(turn.format("crm.write")))
    assert (item["type"], item["namespace"], item["input"]) == ("custom_tool_call", "crm", "x y")
    [item] = output_of(spell(turn.format("functions.patch")))
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "x y")
    [item] = output_of(spell(turn.format("find")))  # the name alone
    assert item["namespace"] == "crm"


def test_a_call_of_a_tool_that_was_not_offered_is_commentary() -> None:
    assert kinds("<|channel|>commentary to=functions.g<|message|>{}<|call|>") == [
        ("message", "commentary", "{}", "completed")
    ]
    assert kinds("<|channel|>analysis to=python code<|message|>1+1<|call|>") == [
        ("message", "commentary", "1+1", "completed")
    ]


def test_empty_arguments_are_an_empty_object() -> None:
    assert kinds("<|channel|>commentary to=functions.f json<|message|><|call|>") == [
        ("function_call", "f", "{}", "completed")
    ]


def test_a_cut_reply_is_incomplete_from_where_it_was_cut() -> None:
    thought = "<|channel|>analysis<|message|>Hm.<|end|>"
    assert kinds(thought) == [("reasoning", "", "Hm.", "completed")]
    assert kinds(f"{thought}<|start|>assistant<|channel|>final<|message|>ha") == [
        ("reasoning", "", "Hm.", "completed"),
        ("message", "final_answer", "ha", "incomplete"),
    ]
    assert kinds('<|channel|>commentary to=functions.f json<|message|>{"a') == [
        ("function_call", "f", '{"a', "incomplete")
    ]


def test_a_reply_of_nothing_has_an_empty_message() -> None:
    assert kinds("<|return|>")[-1][:2] == ("message", "final_answer")
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|return|>"
    assert [it[0] for it in kinds(thought)] == ["reasoning", "message"]


def test_sealed_reasoning_is_in_the_item_that_is_done() -> None:
    ids = spell("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant")
    [item] = output_of([*ids, *spell("<|channel|>final<|message|>4<|return|>")], seal=True)[:1]
    assert item["encrypted_content"] == "sealed Hm."


def test_an_error_closes_what_is_open() -> None:
    writer = ResponseWriter(TOOLS, None, ENDS)
    events = parse(spell("<|channel|>final<|message|>hal"), byte_tokenizer())
    given = [it for event in events[:-2] for it in writer.write(event)]
    assert isinstance(events[-1], RoundEnded)
    assert events[-1].end == End.CUT
    given += writer.finish()
    assert [it["type"] for it in given[-3:]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert writer.output[0]["status"] == "incomplete"


def test_log_probabilities_are_those_of_the_text() -> None:
    writer = ResponseWriter(TOOLS, None, ENDS, byte_tokenizer())
    parser = Parser(byte_tokenizer())
    given = []
    for token in spell("<|channel|>final<|message|>é4<|return|>"):
        logprob = TokenLogprob(token, -0.5, (Alternative(token, -0.5),))
        for event in (TokenSampled(token, logprob), *parser.push(token)):
            given += list(writer.write(event))
    deltas = [it for it in given if it["type"] == "response.output_text.delta"]
    assert [len(it["logprobs"]) for it in deltas] == [2, 1]  # é has two bytes, each a token
    [part] = writer.output[0]["content"]
    assert [it["bytes"] for it in part["logprobs"]] == [[0xC3], [0xA9], [0x34]]
    assert part["logprobs"][2]["top_logprobs"][0]["logprob"] == -0.5
