"""The prefix tree against a list that is searched from end to end."""

from __future__ import annotations

import numpy as np
import pytest

from gptoss.runtime.engine.prefix_tree import Match, PrefixTree, as_tokens


def find_slowly(saved: dict[str, tuple[list[int], set[int]]], prompt: list[int]) -> int:
    """The longest part of the prompt that some state can go on from."""
    best = 0
    for tokens, positions in saved.values():
        common = next(
            (i for i, (a, b) in enumerate(zip(tokens, prompt, strict=False)) if a != b),
            min(len(tokens), len(prompt)),
        )
        usable = [min(p, common, len(prompt) - 1) for p in positions if p <= common + 1]
        best = max([best, *usable])
    return best


def test_finds_what_a_list_finds() -> None:
    """Two token ids only, so that paths meet, split and end inside one another."""
    rng = np.random.default_rng(0)
    tree: PrefixTree[str] = PrefixTree()
    saved: dict[str, tuple[list[int], set[int]]] = {}
    found = 0
    for step in range(4000):
        tokens = [int(x) for x in rng.integers(0, 2, rng.integers(1, 12))]
        match rng.integers(0, 4):
            case 0:
                name = f"s{rng.integers(0, 12)}"
                positions = {int(x) for x in rng.integers(1, len(tokens) + 1, 3)}
                tree.insert(as_tokens(tokens), positions, name)
                saved[name] = (tokens, positions)
            case 1 if saved and step % 3 == 0:
                name = str(rng.choice(sorted(saved)))
                tree.remove(name)
                del saved[name]
            case _:
                match = tree.find(as_tokens(tokens))
                assert (match.position if match else 0) == find_slowly(saved, tokens)
                if match:
                    found += 1
                    assert match.holders
                    for holder in match.holders:
                        assert match.snapshot in saved[holder][1]
                        assert saved[holder][0][: match.position] == tokens[: match.position]
        assert len(tree) == len(saved)
    assert found > 500
    for name in list(saved):
        tree.remove(name)
    assert not tree._root.children  # nothing is left behind


@pytest.mark.parametrize(
    ("prompt", "position", "snapshot"),
    [
        ([1, 2, 3, 4, 5, 6], 4, 4),
        ([1, 2, 3, 4], 3, 4),  # the same prompt again decodes its last token
        ([1, 2, 3, 9], 3, 4),
        ([1, 2, 9], 2, 2),
        ([1, 9], 1, 2),
    ],
)
def test_a_snapshot_serves_its_own_position_and_the_one_before(
    prompt: list[int], position: int, snapshot: int
) -> None:
    tree: PrefixTree[str] = PrefixTree()
    tree.insert(as_tokens([1, 2, 3, 4, 5]), [2, 4], "state")
    assert tree.find(as_tokens(prompt)) == Match(position, snapshot, ("state",))


def test_nothing_in_common() -> None:
    tree: PrefixTree[str] = PrefixTree()
    assert tree.find(as_tokens([1])) is None
    tree.insert(as_tokens([1, 2]), [1, 2], "state")
    assert tree.find(as_tokens([2, 2, 2])) is None
    assert tree.find(as_tokens([1])) is None  # its only token is decoded again
