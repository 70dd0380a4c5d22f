"""Trains the tiny gpt-oss: torch, CPU, two threads, seeded; under an hour on two cores.

    python -m tiny.training.train TOKENIZER_JSON OUT_FOLDER      (from tests/)

``TOKENIZER_JSON`` is gpt-oss's own tokenizer.json. The optimizer is AdamW, its rate rising over
``WARMUP`` steps and then falling to nothing in a half cosine. Weights are float32, products
bfloat16 (half the time, on CPUs that have them), the experts quantized to MXFP4 in every forward
pass. What takes longest to learn is drawn more often than it is asked in tests (``LEARNED``).
``--resume`` goes on from a checkpoint at half the rate; give it another seed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from gptoss.runtime.harmony.messages import final
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from support.rendering import render_history
from tiny.training import checkpoint
from tiny.training.model import (
    EXPERTS,
    Batch,
    Params,
    Shape,
    as_held,
    forward,
    init_params,
    mxfp4_values,
)
from tiny.training.rows import BatchShape, Row, batch_of, batches, branch
from tiny.training.scene import Session, Split
from tiny.training.vocabulary import cut_down, tokenizer
from tiny.training.world import LEARNED, TOOL_KINDS, draw_builtin, draw_scene, draw_session

SEED = 20261124
RANKS = 2000
SHAPES = (
    (
        BatchShape((BROWSER,), 1, 1536, 30),
        BatchShape((PYTHON, BROWSER), 1, 2048, 10),
        BatchShape((BROWSER, PYTHON), 1, 2048, 5),
        BatchShape((PYTHON,), 3, 768, 30),
        BatchShape((), 3, 768, 25),
    ),
    (BatchShape((), 3, 768, 60), BatchShape((PYTHON,), 3, 768, 40)),
)
"""What each thread draws: the declaration of ``browser`` alone has 650 ids."""
THREADS = len(SHAPES)
STEPS = 2600
WARMUP = 60
RATE = 1.5e-3
RESUMED_SHARE = 0.5
EVALUATE_EVERY = 1000


def schedule(step: int, steps: int) -> float:
    """The share of the full rate at a step."""
    if step < WARMUP:
        return step / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def finished(params: Params) -> Params:
    """The weights as the checkpoint will hold them."""
    return {
        n: mxfp4_values(w) if n.endswith(EXPERTS) else w.detach().bfloat16().float()
        for n, w in params.items()
    }


def exact(
    params: Params, shape: Shape, words: Tokenizer, sessions: list[Session]
) -> dict[str, tuple[int, int]]:
    """By category, how many last exchanges the model would say to the letter, and of how many.

    Nothing is generated: greedy decoding says a text exactly when each of its ids is the likeliest
    after those before it. Where several answers are accepted, any will do.
    """
    scores: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for session in sessions:
        right = any(_says(params, shape, words, variant) for variant in variants(session))
        got, of = scores[session.last.category]
        scores[session.last.category] = got + right, of + 1
    return dict(scores)


def variants(session: Session) -> list[Session]:
    """The session with each of the answers that would be right."""
    last = session.last
    return [
        replace(
            session,
            exchanges=(
                *session.exchanges[:-1],
                replace(last, messages=(*last.messages[:-1], final(answer))),
            ),
        )
        for answer in sorted(last.accepted)
    ]


def _says(params: Params, shape: Shape, words: Tokenizer, session: Session) -> bool:
    prefix = render_history(session.scene.messages, words)
    said = branch(session, words)
    ids = prefix + said.ids
    row = Row(ids, list(range(len(ids))), [0] * len(ids), [False] * len(prefix) + said.learned)
    batch = batch_of([row], len(ids))
    with torch.no_grad():
        logits = forward(params, shape, batch)
    return bool((logits.argmax(-1) == batch.targets).all())


def gradients(held: Params, shape: Shape, drawn: Iterator[Batch]) -> tuple[float, list[Tensor]]:
    """The mean loss of the next batch and its gradient for each weight, in order."""
    batch = next(drawn)
    # The cache of bfloat16 weights is not made for two threads at once.
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        logits = forward(held, shape, batch)
    loss = functional.cross_entropy(logits.float(), batch.targets)
    return float(loss.detach()), list(torch.autograd.grad(loss, list(held.values())))


def train(
    source: Path, out: Path, shape: Shape, steps: int, seed: int, resumed: Path | None
) -> None:
    """Two threads, each with its half of a batch, waste less than two threads on one."""
    torch.set_num_threads(1)
    tokenizer_json = cut_down(source, RANKS)
    words = tokenizer(tokenizer_json)
    rng = Random(SEED - 1)
    scenes = (draw_scene(rng, draw_builtin(rng)) for _ in range(200))
    held_out = [draw_session(rng, scene, Split.TEST, TOOL_KINDS) for scene in scenes]
    initial = checkpoint.read(resumed)[0] if resumed else init_params(shape, seed)
    params = {n: w.requires_grad_() for n, w in initial.items()}
    print(f"{shape.describe()}; {sum(w.numel() for w in params.values()):,} weights", flush=True)
    adam = torch.optim.AdamW(params.values(), betas=(0.9, 0.98), weight_decay=0.0)
    rate = RATE * RESUMED_SHARE if resumed else RATE
    drawn = [batches(seed + i, words, shapes, LEARNED) for i, shapes in enumerate(SHAPES)]
    pool = ThreadPoolExecutor(THREADS)
    losses: list[float] = []
    start = time.monotonic()
    for step in range(1, steps + 1):
        held = dict(zip(params, pool.map(as_held, params.items()), strict=True))
        found = list(pool.map(partial(gradients, held, shape), drawn))
        losses.append(sum(loss for loss, _ in found) / THREADS)
        for weight, *grads in zip(params.values(), *(g for _, g in found), strict=True):
            weight.grad = sum(grads) / THREADS
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        adam.param_groups[0]["lr"] = rate * schedule(step, steps)
        adam.step()
        if step % 20 == 0:
            passed = time.monotonic() - start
            print(f"step {step} loss {sum(losses[-20:]) / 20:.4f} {passed:.0f} s", flush=True)
        if step % EVALUATE_EVERY == 0 or step == steps:
            for line in tally(exact(finished(params), shape, words, held_out)):
                print(line, flush=True)
            checkpoint.write(out, finished(params), shape, tokenizer_json)


def tally(scores: dict[str, tuple[int, int]]) -> Iterator[str]:
    """The sum over all categories, then each."""
    got, of = (sum(score[i] for score in scores.values()) for i in (0, 1))
    yield f"held out: {got} of {of} to the letter"
    yield "  " + ", ".join(f"{name} {g}/{o}" for name, (g, o) in sorted(scores.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny gpt-oss.")
    parser.add_argument("tokenizer_json", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from, at half the rate")
    options = parser.parse_args()
    shape = Shape(
        vocab=RANKS + 21, hidden=192, intermediate=192, layers=4, heads=4, kv_heads=2,
        experts=4, experts_used=2,
    )  # fmt: skip
    train(options.tokenizer_json, options.out, shape, options.steps, options.seed, options.resume)


if __name__ == "__main__":
    main()
