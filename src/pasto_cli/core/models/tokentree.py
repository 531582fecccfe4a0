"""Token trees: token lists that share beginnings, packed so that each shared token stands once.

A tree (trie) of rows becomes one sequence: every node once, position id = depth, attention =
ancestors and itself. One forward pass then gives each row exactly what a pass of its own would
give, at the cost of the distinct tokens (tree attention, as in SpecInfer, arXiv 2305.09781).
`pack(..., tree=False)` gives padded rows behind the same interface; it is the fallback for models
that take no such mask.

Legend: s sequences (1 for a tree), n nodes per sequence, m = s n flat nodes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Rows ready for a forward pass."""

    input_ids: Tensor
    """(s, n) int64."""
    position_ids: Tensor
    """(s, n) int64: depth of each node."""
    mask: Tensor
    """(s, 1, n, n) bool: query (dim 2) may see key (dim 3)."""
    lengths: list[int] | None
    """Real tokens of each sequence of padded rows; None for a tree, whose every node is real."""
    paths: list[Tensor]
    """For each row the flat indices of its nodes, root first: (length of the row,) int64."""

    @property
    def num_nodes(self) -> int:
        """Nodes that a forward pass computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> "Packed":
        """The same on another device; paths stay on the cpu, where rows are looked up."""
        return self._replace(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            mask=self.mask.to(device),
        )


def pack(rows: Sequence[Sequence[int]], tree: bool = True) -> Packed:
    """Pack rows of token ids.

    Args:
        rows: Non-empty token lists.
        tree: One sequence of distinct nodes, or (False) one right-padded sequence per row.
    """
    assert rows and all(rows), "every row needs a token"
    return _pack_tree(rows) if tree else _pack_padded(rows)


def _pack_tree(rows: Sequence[Sequence[int]]) -> Packed:
    """One sequence that holds each distinct beginning of a row as one node."""
    children: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    paths = []
    for row in rows:
        node, path = -1, []
        for depth, token in enumerate(row):
            key = (node, int(token))
            if key not in children:
                children[key] = len(tokens)
                tokens.append(int(token))
                depths.append(depth)
                parents.append(node)
            node = children[key]
            path.append(node)
        paths.append(torch.tensor(path))
    mask = torch.eye(len(tokens), dtype=torch.bool)  # (n, n): each node sees itself
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]  # complete by now: a parent comes before its children
    return Packed(torch.tensor([tokens]), torch.tensor([depths]), mask[None, None], None, paths)


def _pack_padded(rows: Sequence[Sequence[int]]) -> Packed:
    """One sequence per row, padded on the right."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row))
    positions = torch.arange(longest).expand(len(rows), -1).contiguous()  # (s, n)
    # Padding stands to the right, so no real token sees it under the model's own causal mask.
    mask = torch.ones(longest, longest, dtype=torch.bool).tril().expand(len(rows), 1, -1, -1)
    paths = [index * longest + torch.arange(len(row)) for index, row in enumerate(rows)]
    return Packed(ids, positions, mask, [len(row) for row in rows], paths)


def cut(rows: Sequence[Sequence[int]], budget: int, tree: bool = True) -> list[list[int]]:
    """Group rows into batches of at most `budget` nodes (a longer single row stands alone).

    Args:
        rows: Token lists.
        budget: Nodes of one batch (attention costs their square); padding counts when `tree` is
            False.
        tree: Whether the batches will be packed as trees.

    Returns:
        Lists of row indices, rows with long common beginnings together.
    """
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    groups: list[list[int]] = []
    nodes = longest = 0
    for index in order:
        row = rows[index]
        longest = max(longest, len(row))
        if not groups:
            grown = len(row)
        elif tree:
            # In sorted order a row shares most with the one before it; what it does not share are
            # its new nodes.
            grown = nodes + len(row) - _common_prefix(rows[groups[-1][-1]], row)
        else:
            grown = longest * (len(groups[-1]) + 1)
        if groups and grown <= budget:
            groups[-1].append(index)
            nodes = grown
        else:
            groups.append([index])
            nodes = longest = len(row)
    return groups


def pack_groups(
    rows: Sequence[Sequence[int]], budget: int | None, tree: bool = True
) -> Iterator[tuple[list[int], Packed]]:
    """Cut rows into groups and pack each: (indices of its rows, the rows packed).

    Args:
        rows: Non-empty token lists.
        budget: See `cut`; None packs all rows together, in their order.
        tree: See `pack`.
    """
    groups = [list(range(len(rows)))] if budget is None else cut(rows, budget, tree)
    for group in groups:
        yield group, pack([rows[i] for i in group], tree)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two rows."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
