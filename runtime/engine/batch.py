"""What one batch holds: planned from the requests as they are, without touching the context."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.request import Request

MIN_CHUNK = 16
"""Prompt tokens decoded at a time, at least: fewer cost nearly as much."""


def plan_batch(
    requests: Sequence[Request], n_batch: int, most_beside: int
) -> list[tuple[Request, Chunk]]:
    """Plan a batch of the scheduler's active requests: one token of each generating one and an
    equal share of each prompt; at most ``most_beside`` tokens of prompts beside a generating one.

    In the order of the streams: llama.cpp decodes neighbours together, and what is out of order
    one after the other, for as long each.
    """
    running = [it for it in requests if not it.paused]
    generating = [it for it in running if it.is_generating]
    planned = [(it, next_chunk(it, 1)) for it in generating]
    prompts = [it for it in running if not it.is_generating]
    room = n_batch - len(generating)
    if generating:
        room = min(room, max(MIN_CHUNK, most_beside))
    for i, request in enumerate(prompts):
        share = room // (len(prompts) - i)
        if share > 0:
            chunk = next_chunk(request, share)
            planned.append((request, chunk))
            room -= len(chunk.tokens)
    return sorted(planned, key=lambda it: it[1].stream)


def next_chunk(request: Request, limit: int) -> Chunk:
    """Return the tokens of one request for the scheduler's next batch, at most up to its next
    checkpoint; with what was drafted to follow its last token.
    """
    stream = request.stream
    assert stream is not None  # noqa: S101 active requests have one
    start = len(stream.tokens)
    end = min(start + limit, len(request.target))
    if start < request.n_prompt:
        end = min((it for it in request.checkpoints if start < it < end), default=end)
    if end < len(request.target):
        return Chunk(stream.number, start, request.target[start:end], 0)
    tokens = [*request.target[start:end], *request.drafted]
    return Chunk(stream.number, start, tokens, 1 + len(request.drafted))
