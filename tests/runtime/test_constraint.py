"""Generation held to a turn's rules, where the logits are noise: nothing else makes it right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.errors import UnsupportedModelError
from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.harmony.errors import ConstraintError
from gptoss.runtime.harmony.events import Diagnostic, End, MessageEnded, RoundEnded
from gptoss.runtime.harmony.messages import Function, Message, Namespace
from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.constrained import Constrained, TokenMasks, _choice
from gptoss.runtime.sampling.grammar import (
    JSON_OBJECT,
    JsonSchema,
    Lark,
    ReasoningStop,
    Regex,
    ResponseFormat,
    Rules,
    ToolChoice,
)
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from support.hostile import CASES
from support.random_engine import RandomEngine
from support.tokens import byte_tokenizer, spell, spelled

TOKENIZER = byte_tokenizer()
STOP = frozenset(TOKENIZER.control[text] for text in ("<|return|>", "<|call|>"))
ENDS = [TOKENIZER.control[text] for text in ("<|end|>", "<|return|>", "<|call|>")] + [ord('"')]
CLOSED = "<|end|><|start|>assistant<|channel|>final<|message|>"

WEATHER = Function(
    "weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)
WEATHER_MAP = Function("weather_map", parameters={"type": "object", "additionalProperties": False})
NOW = Function("now")
FUNCTIONS = (WEATHER, WEATHER_MAP, NOW)
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"enum": ["up", "down", None]}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


@cache
def vocabulary() -> TokenMasks:
    return TokenMasks(TOKENIZER)


def generated(
    rules: Rules, seed: int, *, budget: int | None = 30, most: int = 5000
) -> tuple[list[int], Constrained]:
    """The ids of a turn of noise."""
    sampler = vocabulary().constrain(rules, RandomSampler(Sampling(), seed), budget)
    engine = RandomEngine(TOKENIZER.n_vocab, seed, favoured=ENDS)
    return list(engine.generate([0], sampler, stop=STOP, max_tokens=most)), sampler


def likeliest(logits: Logits) -> int:
    """A sampler without chance."""
    return int(np.argmax(logits))


def wanting(token: int) -> Logits:
    """What a model gives out that wants this token."""
    logits = np.zeros(TOKENIZER.n_vocab, np.float32)
    logits[token] = 1
    return logits


def turns(rules: Rules, n: int = 40, budget: int | None = 30) -> Iterator[list[Message]]:
    """Messages of whole turns, which must have parsed without repair."""
    for seed in range(n):
        ids, _ = generated(rules, seed, budget=budget)
        events = parse(ids, TOKENIZER)
        assert not [e for e in events if isinstance(e, Diagnostic)], spelled(ids)
        ended = events[-1]
        assert isinstance(ended, RoundEnded)
        assert ended.end in (End.RETURN, End.CALL), spelled(ids)
        yield [e.message for e in events if isinstance(e, MessageEnded)]


def calls(messages: Sequence[Message]) -> list[Message]:
    return [m for m in messages if m.recipient is not None]


def test_turns_are_well_formed_and_call_only_what_is_declared() -> None:
    called = set()
    for messages in turns(Rules(FUNCTIONS), 100):
        *before, last = messages
        assert all(m.channel in ("analysis", "commentary") for m in before)
        assert not calls(before)
        assert (last.channel == "final") == (last.recipient is None)
        called |= {m.recipient for m in calls(messages)}
        for call in calls(messages):
            assert call.content_type in (None, "json", "code", "<|constrain|>json")
            arguments = json.loads(call.text)
            if call.recipient == "functions.weather":
                assert set(arguments) in ({"city", "days"}, {"city", "days", "unit"})
                assert 1 <= arguments["days"] <= 7
                assert len(arguments["city"]) <= 12
                assert arguments.get("unit", "c") in ("c", "f")
            else:
                assert arguments == {}
    assert called == {f"functions.{function.name}" for function in FUNCTIONS}


def test_without_tools_there_are_no_calls() -> None:
    assert not any(calls(messages) for messages in turns(Rules()))


def test_tool_choice_none() -> None:
    for messages in turns(Rules(FUNCTIONS, tool_choice=ToolChoice.NONE)):
        assert {m.channel for m in messages} <= {"analysis", "final"}


def test_tool_choice_required() -> None:
    rules = Rules(FUNCTIONS, tool_choice=ToolChoice.REQUIRED)
    assert all(calls(messages) for messages in turns(rules))
    assert any(generated(rules, seed)[1].closed for seed in range(40)), "closing opens a call too"


def test_tool_choice_by_name() -> None:
    for messages in turns(Rules(FUNCTIONS, tool_choice="weather")):
        assert [m.recipient for m in calls(messages)] == ["functions.weather"]


def test_parallel_calls_only_where_asked_for() -> None:
    rules = Rules(FUNCTIONS, tool_choice=ToolChoice.REQUIRED)
    assert {len(calls(messages)) for messages in turns(rules)} == {1}
    several = Rules(FUNCTIONS, tool_choice=ToolChoice.REQUIRED, parallel_calls=True)
    assert max(len(calls(messages)) for messages in turns(several)) > 1


def test_built_in_tools() -> None:
    search = {"type": "object", "properties": {"query": {"type": "string", "maxLength": 5}}}
    browser = Namespace("browser", (Function("search", parameters=search),))
    rules = Rules(namespaces=(browser, Namespace("python")), tool_choice=ToolChoice.REQUIRED)
    seen = set()
    for messages in turns(rules):
        [call] = calls(messages)
        seen.add((call.recipient, call.channel))
        if call.recipient == "browser.search":
            assert isinstance(json.loads(call.text), dict)
    assert seen == {(to, on) for to in ("browser.search", "python")
                    for on in ("analysis", "commentary")}  # fmt: skip


def is_point(text: str) -> bool:
    value = json.loads(text)
    return (
        set(value) == {"x", "y"} and type(value["x"]) is int and value["y"] in ("up", "down", None)
    )


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        (JSON_OBJECT, lambda text: isinstance(json.loads(text), dict)),
        (JsonSchema(POINT), is_point),
        (Regex("[a-f]{2}/[0-9]+|x\\/\ny"), re.compile("[a-f]{2}/[0-9]+|x/\ny").fullmatch),
        (Lark('start: WORD (", " WORD)*\nWORD: /[a-z]{1,3}/'), re.compile(
            "[a-z]{1,3}(, [a-z]{1,3})*").fullmatch),
    ],
    ids=["object", "schema", "regex", "lark"],
)  # fmt: skip
def test_response_format(wanted: ResponseFormat, holds: Callable[[str], Any]) -> None:
    """In the answer only: reasoning and calls are as without it."""
    reasoned = 0
    for messages in turns(Rules((NOW,), response_format=wanted)):
        for message in messages:
            if message.channel == "final":
                assert holds(message.text), message.text
            reasoned += message.channel == "analysis" and not message.text.startswith("{")
    assert reasoned


def test_nullable_is_understood() -> None:
    """OpenAPI's word, which is no keyword of JSON Schema; a property may still be called so."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "enum": ["x"], "nullable": True},
            "nullable": {"type": "boolean"},
            "b": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}], "nullable": True},
        },
        "required": ["a", "nullable", "b"],
        "additionalProperties": False,
    }
    values = [
        json.loads(messages[-1].text)
        for messages in turns(Rules(response_format=JsonSchema(schema)))
    ]
    assert {value["a"] for value in values} == {"x", None}
    assert {value["nullable"] for value in values} == {True, False}
    assert None in {value["b"] for value in values}


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_json_may_be_laid_out_as_writers_do(indent: int | None) -> None:
    sampler = vocabulary().constrain(Rules(reasoning=False, response_format=JSON_OBJECT), likeliest)
    text = json.dumps({"a": [1, {"b": None}], "c": {}}, indent=indent)
    for token in spell(f"<|channel|>final<|message|>{text}<|return|>"):
        assert sampler(wanting(token)) == token


def test_blanks_end_somewhere() -> None:
    sampler = vocabulary().constrain(Rules(reasoning=False, response_format=JSON_OBJECT), likeliest)
    for token in spell("<|channel|>final<|message|>{\n"):
        assert sampler(wanting(token)) == token
    written = [sampler(wanting(ord(" "))) for _ in range(40)]
    assert written[:33].count(ord(" ")) == 32


def test_integers_end_somewhere() -> None:
    """Where the model would write digits for ever."""
    sampler = vocabulary().constrain(
        Rules(reasoning=False, response_format=JsonSchema({"type": ["integer", "null"]})), likeliest
    )
    header = spell("<|channel|>final<|message|>")
    ids = [sampler(wanting(token)) for token in header]
    ids += [sampler(wanting(ord("4"))) for _ in range(20)]
    assert spelled(ids[len(header) :]) == "4" * 19 + "<|return|>"


# --- reasoning that has to end ----------------------------------------------------------------


def test_a_budget_closes_the_reasoning_and_opens_the_answer() -> None:
    closed = 0
    for seed in range(40):
        ids, sampler = generated(Rules(), seed, budget=10)
        if sampler.closed is not None:
            closed += 1
            assert sampler.closed is ReasoningStop.BUDGET
            assert CLOSED in spelled(ids)
            assert sampler.reasoned >= 10
    assert closed > 5


def test_a_budget_of_nothing_leaves_no_reasoning() -> None:
    for messages in turns(Rules(reasoning=False), budget=0):
        assert [m.channel for m in messages] == ["final"]


def test_a_loop_in_the_reasoning_is_closed() -> None:
    sampler = vocabulary().constrain(Rules(), likeliest)
    header = spell("<|channel|>analysis<|message|>")
    ids = [sampler(wanting(token)) for token in header]
    said = spell("Wait, let me think. ")
    while sampler.closed is None and len(ids) < 2000:
        ids.append(sampler(wanting(said[(len(ids) - len(header)) % len(said)])))
    assert sampler.closed is ReasoningStop.LOOP
    assert 512 <= len(ids) <= 600
    ids += [sampler(wanting(said[0])) for _ in spell(CLOSED)[1:]]
    assert spelled(ids).endswith(CLOSED)


# --- free text --------------------------------------------------------------------------------


class Counting:
    """A matcher that counts what is asked of it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self.masks = self.consumed = 0

    def unsafe_compute_mask_ptr(self, pointer: int, nbytes: int) -> None:
        self.masks += 1
        self._matcher.unsafe_compute_mask_ptr(pointer, nbytes)

    def consume_token(self, token: int) -> bool:
        self.consumed += 1
        return bool(self._matcher.consume_token(token))

    def is_error(self) -> bool:
        return bool(self._matcher.is_error())


def test_free_text_costs_nothing() -> None:
    """One mask where it begins; at its tokens llguidance is not asked at all."""
    sampler = vocabulary().constrain(Rules(), likeliest)
    counting = sampler._structure = Counting(sampler._structure)  # type: ignore[assignment]
    assert isinstance(counting, Counting)
    text = "Any text at all, and half a character: \udcf0"
    header, end = spell("<|channel|>final<|message|>"), spell("<|return|>")
    for token in [*header, *text.encode("utf-8", "surrogateescape"), *end]:
        assert sampler(wanting(token)) == token
        if token == TOKENIZER.control["<|message|>"]:
            begun = counting.masks, counting.consumed
    assert counting.masks == begun[0]
    assert counting.consumed == begun[1] + 1, "the token that ends it"


def test_control_tokens_stay_out_of_free_text() -> None:
    for text in ("<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|endoftext|>", "<|end|>"):
        sampler = vocabulary().constrain(Rules(), likeliest)
        for token in spell("<|channel|>final<|message|>x"):
            sampler(wanting(token))
        drawn = sampler(wanting(TOKENIZER.control[text]))
        assert drawn not in TOKENIZER.control.values(), text


def test_logits_without_a_finite_one_are_an_error() -> None:
    sampler = vocabulary().constrain(Rules(FUNCTIONS), RandomSampler(Sampling(), 0))
    with pytest.raises(EngineError, match="largest logit"):
        sampler(np.full(TOKENIZER.n_vocab, np.nan, np.float32))


# --- what cannot be compiled ------------------------------------------------------------------


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (JsonSchema({"type": "strin"}), "strin"),
        (JsonSchema({"$ref": "#/nowhere"}), "nowhere"),
        (JsonSchema({"$ref": "https://example.org/schema"}), "example.org"),
        (JsonSchema({"type": "string", "pattern": "("}), "regex"),
        (JsonSchema({"type": "integer", "minimum": 5, "maximum": 2}), ""),
        (JsonSchema(deep(100)), "nested deeper than 64 levels"),
        (JsonSchema({"enum": ["\ud800"]}), "enum[0]: a lone surrogate"),
        (JsonSchema({"enum": [float("nan")]}), "infinite or not a number"),
        (JsonSchema({"enum": [object()]}), "must be JSON, not object"),
        (JsonSchema({1: 2}), "must be a string, not a number"),  # type: ignore[dict-item]
        (JsonSchema(["type"]), "must be an object, not an array"),  # type: ignore[arg-type]
        (JsonSchema({"enum": ["x" * 600_000]}), "more than 500000 characters"),
        (JsonSchema({"pattern": "a" * 20_000}), "more than 10000 characters"),
        (JsonSchema({"allOf": [{"type": "string"}, {"type": "null"}]}), "nsatisfiable"),
        (JsonSchema({"$ref": "#"}), "no text at all"),
        (JsonSchema({"type": "object", "properties": {f"p{i}": {} for i in range(999)}}), "items"),
        (Regex("[^\\s\\S]"), "no text at all"),
        (Regex("\ud800"), "lone surrogate"),
        (Regex(None), "must be a string"),  # type: ignore[arg-type]
        (Regex("("), "regex"),
        (Regex("(?=a)"), "look-around"),
        (Regex("a" * 20_000), "more than 10000 characters"),
        (Lark("start: " + "a" * 30_000), "more than 20000 characters"),
        (Lark("start: a\na: b\nb: a"), "no text at all"),
        (Lark("start: nothing"), "nothing"),
        (Lark("begin: /a/"), "start"),
        (JsonSchema({"not": {}}), "admits no value at all"),
        (Lark("start: <|start|> /a/"), "unknown special token"),
        (Lark('start: <[256]> "<"'), "no text at all"),
        (Lark('start: <[9999]> "<"'), "range"),
        (Lark("start: @other"), "unknown grammar @other"),
        (Lark("start: %json {}"), "%ignore"),
        (Lark("start: " + "(" * 100 + "/a/" + ")" * 100), "nested deeper"),
    ],
)
def test_what_cannot_be_compiled_is_refused(wanted: ResponseFormat, problem: str) -> None:
    with pytest.raises(ConstraintError) as refused:
        vocabulary().constrain(Rules(FUNCTIONS, response_format=wanted), RandomSampler(Sampling()))
    assert refused.value.field.split(".")[0] == "response_format"
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "share", [0, 0.01, 0.039, 0.041, 0.08, 0.1, 0.101, 0.12, 0.5, 0.51, 0.9, 1]
)
@pytest.mark.parametrize("n", [1000, 201_100])
def test_a_mask_s_ids(n: int, share: float) -> None:
    """Of every density, for each is found in its own way; bits behind the last token count not."""
    random = np.random.default_rng(n)
    flags = np.zeros(-(-n // 32) * 32, np.bool_)
    flags[random.permutation(n)[: round(share * n)]] = True
    flags[n:] = True
    choice = _choice(np.packbits(flags, bitorder="little").tobytes(), n)
    assert choice.admitted == (share <= 0.5)
    assert (choice.ids == np.flatnonzero(flags[:n] == choice.admitted)).all()


def test_a_vocabulary_with_a_token_as_long_as_a_book() -> None:
    control = TOKENIZER.control
    token_bytes = [TOKENIZER.token_bytes(i) for i in range(TOKENIZER.n_vocab)] + [b"a" * 10**6]
    with pytest.raises(UnsupportedModelError, match="a token of 1000000 bytes"):
        TokenMasks(Tokenizer(token_bytes, control, [*range(256), len(token_bytes) - 1]))


def test_rows_of_the_vocabulary_that_stand_for_nothing_are_not_drawn() -> None:
    """Published models have some; their bytes here would otherwise be welcome everywhere."""
    token_bytes = [TOKENIZER.token_bytes(i) for i in range(TOKENIZER.n_vocab)] + [b"7"] * 20
    padded = TokenMasks(Tokenizer(token_bytes, TOKENIZER.control, range(256)))
    for wanted in (None, JsonSchema({"type": "integer"})):
        for text in ("", "7"):
            sampler = padded.constrain(Rules(response_format=wanted, reasoning=False), likeliest)
            for token in spell(f"<|channel|>final<|message|>{text}"):
                logits = np.zeros(len(token_bytes), np.float32)
                logits[token] = 1
                assert sampler(logits) == token
            logits = np.zeros(len(token_bytes), np.float32)
            logits[TOKENIZER.n_vocab :] = 1
            assert sampler(logits) < TOKENIZER.n_vocab


def test_the_tool_at_fault_is_named() -> None:
    bad = Function("bad", parameters={"type": "object", "properties": {"a": {"type": "no"}}})
    with pytest.raises(ConstraintError) as refused:
        vocabulary().compile(Rules((WEATHER, bad)))
    assert refused.value.field == "tools.bad.properties.a.type"


def test_a_colon_in_a_property_s_name_is_part_of_the_place() -> None:
    odd = {"type": "object", "properties": {"time: from\nto": {"type": "no"}}}
    with pytest.raises(ConstraintError) as refused:
        vocabulary().compile(Rules(response_format=JsonSchema(odd)))
    assert refused.value.field == "response_format.properties.time: from\nto.type"
    assert refused.value.problem.startswith("'no'")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (Rules(FUNCTIONS, tool_choice="nothing"), "tools: weather, weather_map, now"),
        (Rules(tool_choice="required"), "there is no tool"),
        (Rules((Function("a b"),)), "letters"),
        (Rules((Function('x" <|start|> "'),)), "letters"),
    ],
)
def test_rules_that_contradict_themselves(rules: Rules, problem: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(problem)):
        vocabulary().compile(rules)


@pytest.mark.slow
def test_no_schema_or_grammar_ends_the_process_or_takes_for_ever() -> None:
    """Each is sampled from, or refused before a token is made; on a small stack."""
    tests = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "support.hostile"],
        cwd=tests,
        capture_output=True,
        text=True,
        timeout=300,
    )
    *said, slowest = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    assert len(said) == len(CASES)
    wrong = [line for line in said if not re.search(r": (60 tokens|ConstraintError: )", line)]
    assert not wrong
    assert float(slowest.split()[1]) < 30
