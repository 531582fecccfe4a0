"""Greedy answers to many prompts at once, on token trees that grow.

What prompts have in common is computed once (`tokentree`), and keys and values of every node are
kept. Each pass then puts the newest token of every row that goes on beside those of the others, in
one sequence: a token sees its own row and itself. So rows of unlike length run together without
padding, and the weights are read once for all of them.

Legend: n nodes so far, r rows that go on, v vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from pasto_cli.core.models.forward import tree_masks
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.low_layers import low_layers
from pasto_cli.core.models.tokentree import Packed, cut, pack
from pasto_cli.core.steering.overflow import require_true_logits
from pasto_cli.core.steering.steerer import NoOpSteerer, Steerer

NODES = 1024
"""Nodes of a tree before it grows. More rows together read the weights less often."""
ROWS = 128
"""Rows of a tree: each adds a node with every token, and equal prompts have hardly any before."""


@torch.no_grad()
def tree_answers(
    lm: LoadedModel,
    rows: Sequence[Sequence[int]],
    lengths: Sequence[int],
    ends: Collection[int],
    progress: Callable[[int], None] = lambda _: None,
    steerer: Steerer | None = None,
    coefficient: float = 0.0,
) -> list[list[int]]:
    """The greedy answer to each row, with the token that ends it.

    Args:
        lm: A base model that takes trees (`LoadedModel.trees`).
        rows: Token ids of prompts.
        lengths: The longest answer to each of them, at least 1.
        ends: Tokens that end an answer.
        progress: Told how many answers there are more; those of a tree come bit by bit.
        steerer: Sets the coefficient; the clean model answers where it is left out.
        coefficient: Of all rows.

    Raises:
        PastoError: If states overflow.
    """
    answers: list[list[int]] = [[] for _ in rows]
    with (steerer or NoOpSteerer()).at([coefficient]):
        for group in trees_of(rows):
            packed = pack([rows[i] for i in group])
            found = _Growth(lm, packed, coefficient).answers(
                [lengths[i] for i in group], ends, progress
            )
            for index, answer in zip(group, found, strict=True):
                answers[index] = answer
    return answers


def trees_of(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which rows grow in one tree, as indices: those with long common beginnings together."""
    return [
        group[at : at + ROWS] for group in cut(rows, NODES) for at in range(0, len(group), ROWS)
    ]


class _Growth:
    """One tree that grows; the model is steered around it.

    Args:
        lm: The model.
        packed: The prompts.
        coefficient: For the message where states overflow.
    """

    def __init__(self, lm: LoadedModel, packed: Packed, coefficient: float) -> None:
        from transformers import DynamicCache

        self.lm, self.coefficient, packed = lm, coefficient, packed.to(lm.device)
        # Without a configuration all layers keep all nodes, those of a sliding window too: the
        # window is in the mask.
        self.cache: Any = DynamicCache()
        self.depths = packed.position_ids  # (1, n)
        ends = torch.tensor([int(path[-1]) for path in packed.paths], device=lm.device)  # (r,)
        self.own = self.depths[0, ends]  # (r,) depth of each row's newest token
        self.seen = packed.mask[0, 0, ends]  # (r, n) its row, with itself
        self.states = self._run(packed.input_ids, packed.mask, self.depths)[ends]  # (r, d_model)

    def answers(
        self, lengths: Sequence[int], ends: Collection[int], progress: Callable[[int], None]
    ) -> list[list[int]]:
        """One answer to each prompt."""
        count, longest = len(lengths), max(lengths)
        answers: list[list[int]] = [[] for _ in range(count)]
        going = list(range(count))
        for done in range(longest):
            tokens = self._tokens()
            for row, token in zip(going, tokens, strict=True):
                answers[row].append(token)
            stay = [
                at
                for at, (row, token) in enumerate(zip(going, tokens, strict=True))
                if token not in ends and len(answers[row]) < lengths[row]
            ]
            if not stay:
                progress(count - count * done // longest)
                break
            progress(count * (done + 1) // longest - count * done // longest)
            going = [going[at] for at in stay]
            self._append(stay, [tokens[at] for at in stay])
        return answers

    def _tokens(self) -> list[int]:
        """The likeliest next token of each row."""
        logits = self.lm.head(self.states)  # (r, v)
        require_true_logits(logits, [self.coefficient] * len(logits))
        return logits.argmax(-1).tolist()

    def _append(self, stay: Sequence[int], tokens: Sequence[int]) -> None:
        """One more token to those rows that go on."""
        device = self.lm.device
        index = torch.tensor(stay, device=device)
        itself = torch.eye(len(stay), dtype=torch.bool, device=device)
        self.own = self.own[index] + 1
        self.seen = torch.cat([self.seen[index], itself], dim=1)  # (r, n + r)
        self.depths = torch.cat([self.depths, self.own[None]], dim=1)
        ids = torch.tensor([list(tokens)], device=device)  # (1, r)
        self.states = self._run(ids, self.seen[None, None], self.own[None])

    def _run(self, ids: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        """States (q, d_model) of q more nodes (1, q), after the final norm."""
        with low_layers(self.lm):
            output = self.lm.trunk(
                input_ids=ids,
                attention_mask=tree_masks(self.lm, mask, queries, self.depths),
                position_ids=queries,
                past_key_values=self.cache,
                use_cache=True,
            )
        return output.last_hidden_state[0].to(self.lm.device)
