"""A prefix tree over token ids: which saved states share how much of a prompt.

Each node is a position in some sequence of tokens; the edge to it holds the tokens since its
parent. States are held at the nodes from which decoding can go on exactly: where a snapshot of the
window layers was saved. Looking a prompt up walks down once, however many states there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
"""Token ids, int32 of shape (n,)."""

H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class Match(Generic[H]):
    """A place from which a prompt can go on."""

    position: int
    """Tokens of the prompt that need no decoding."""
    snapshot: int
    """Position of the snapshot to restore: ``position`` or one more."""
    holders: tuple[H, ...]
    """The states that have this snapshot."""


class _Node(Generic[H]):
    __slots__ = ("children", "depth", "edge", "holders", "parent")

    def __init__(self, parent: _Node[H] | None, edge: Tokens, depth: int) -> None:
        self.parent = parent
        self.edge = edge
        self.depth = depth
        self.children: dict[int, _Node[H]] = {}
        self.holders: list[H] = []


class PrefixTree(Generic[H]):
    """Saved states by their tokens. A holder is any hashable object that stands for one state."""

    def __init__(self) -> None:
        self._root: _Node[H] = _Node(None, np.empty(0, np.int32), 0)
        self._nodes: dict[H, list[_Node[H]]] = {}

    def __contains__(self, holder: H) -> bool:
        return holder in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def insert(self, tokens: Tokens, positions: Iterable[int], holder: H) -> None:
        """Add the state ``holder`` of ``tokens`` with snapshots at ``positions`` (1 to the number
        of tokens); one that is there already is replaced.
        """
        self.remove(holder)
        nodes = [self._node_at(tokens, position) for position in sorted(set(positions))]
        for node in nodes:
            node.holders.append(holder)
        self._nodes[holder] = nodes

    def remove(self, holder: H) -> None:
        """Remove a state and the nodes that only it needed; nothing happens if it is not there."""
        for node in self._nodes.pop(holder, ()):
            node.holders.remove(holder)
            self._prune(node)

    def find(self, prompt: Tokens) -> Match[H] | None:
        """Find the states from which most of ``prompt`` can go on; None where none has any of it.

        At least one token is left to decode, since its logits are wanted. A snapshot at n holds
        the window's tokens up to n − 1, which is enough to go on from n − 1 too.
        """
        node, matched, best = self._root, 0, (0, self._root)
        while True:
            best = max([best, *_usable(node)], key=lambda it: it[0])
            child = node.children.get(int(prompt[matched])) if matched < len(prompt) else None
            if child is None:
                break
            matched += count_common(child.edge, prompt[matched:])
            if matched < child.depth:
                if child.holders and matched == child.depth - 1:
                    best = (matched, child)
                break
            node = child
        position, node = min(best[0], len(prompt) - 1), best[1]
        return Match(position, node.depth, tuple(node.holders)) if position > 0 else None

    def _node_at(self, tokens: Tokens, depth: int) -> _Node[H]:
        """Return the tree's node after the first ``depth`` tokens, made where it is missing."""
        node = self._root
        while node.depth < depth:
            rest = tokens[node.depth : depth]
            child = node.children.get(int(rest[0]))
            if child is None:
                node.children[int(rest[0])] = child = _Node(node, rest, depth)
            elif (common := count_common(child.edge, rest)) < len(child.edge):
                child = _split(child, common)
            node = child
        return node

    def _prune(self, node: _Node[H]) -> None:
        while node.parent is not None and not node.holders and not node.children:
            del node.parent.children[int(node.edge[0])]
            node = node.parent


def _usable(node: _Node[H]) -> Iterator[tuple[int, _Node[H]]]:
    """Yield where decoding can go on in the prefix tree after the path to ``node``."""
    if node.holders:
        yield node.depth, node
    for child in node.children.values():
        if child.holders and child.depth == node.depth + 1:
            yield node.depth, child


def _split(node: _Node[H], length: int) -> _Node[H]:
    """Put a new node after the first ``length`` tokens of the edge to a tree's node."""
    parent = node.parent
    assert parent is not None  # noqa: S101 the root has no edge
    middle: _Node[H] = _Node(parent, node.edge[:length], parent.depth + length)
    parent.children[int(middle.edge[0])] = middle
    node.edge, node.parent = node.edge[length:], middle
    middle.children[int(node.edge[0])] = node
    return middle


def count_common(a: Tokens, b: Tokens) -> int:
    """Count the tokens at the start of two arrays that are the same in both."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


def as_tokens(ids: Sequence[int]) -> Tokens:
    """Return a list of token ids as the array that the prefix tree takes."""
    return np.asarray(ids, np.int32)
