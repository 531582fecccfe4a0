"""From a batch of pairs to one loss: runs the prompts at +1 and -1, reads them, adds up the terms.

    rows (chosen, rejected, neutral of each pair) -> `forward`: hidden states at 0, +1, -1
        -> `readout`: single numbers of the next-token distributions -> `terms`: the loss

The base model's side of a pair (h_0, p_0 and its entropy H) does not change during training. It is
computed once and kept as hidden states, at the loss depth and before the output head at the tokens
that count; from the latter the head recomputes exact distributions, which would be far too large to
keep.

Legend: b pairs, c coefficients, w window (positions of one row that count), d d_model.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.models.forward import RowStates, hidden_states
from pasto_cli.core.models.loaded import LoadedModel, at_least_single
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.schema import SubspaceSpec
from pasto_cli.core.records.training import BaseSide
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.training import readout, terms
from pasto_cli.core.training.anchors import AnchorRead, AnchorRow, Anchors, read_anchors
from pasto_cli.core.training.preference import (
    AnswerRow,
    LogRatios,
    PreferencePair,
    Preferences,
    log_ratios,
)
from pasto_cli.core.training.terms import BasePair, LossReport, Side, SteeredPair

T = TypeVar("T")
SIGNS = (1.0, -1.0)
"""Coefficients of a training step, in the order of the leading axis."""
REMEMBERED_TOGETHER = 32
"""Pairs whose base sides are computed at once: enough to share beginnings, few enough to stop soon
when the cache is full."""


def head_bytes(vocabulary: int, width: int) -> int:
    """Bytes of vocabulary-wide rows that a training step holds at once, a pair's at least.

    A few such tensors come and go. Each product reads the whole output head (vocabulary, width),
    which has to pay: a quarter of what that holds in float32, rows as many as a quarter of `width`,
    takes no longer than more of them at once.
    """
    return max(2**25, vocabulary * width)


class Drawn(NamedTuple):
    """What an optimiser step looks at beside its pairs."""

    anchors: Sequence[AnchorRow]
    preferences: Sequence[PreferencePair]
    reach: float = 1.0
    """Anchors are read at +-this."""


class Found(NamedTuple):
    """What was read of the steered model in a step."""

    pairs: list[SteeredPair]
    anchors: list[AnchorRead]
    ratios: list[LogRatios]
    """For each pair of answers."""


class Objective:
    """The loss of the method for one model, subspace and set of terms.

    Args:
        lm: The base model.
        basis: P (d, k).
        spec: The recipe's losses.
        subspace: For the loss depth and the number of last tokens.
        budget: Nodes of a token tree.
        cache_mb: Memory for cached base sides.
        anchors: Prompts on which the dial should change nothing; None for none.
        preferences: The model's own answers under each persona; None for none.
    """

    def __init__(
        self,
        lm: LoadedModel,
        basis: Tensor,
        spec: LossesSpec,
        subspace: SubspaceSpec,
        *,
        budget: int,
        cache_mb: float,
        anchors: Anchors | None = None,
        preferences: Preferences | None = None,
    ) -> None:
        self.lm = lm
        self.basis = basis.to(lm.device)
        self.spec = spec
        self.depth = lm.depth_index(subspace.depth)
        self.last_tokens = subspace.last_tokens
        self.budget = budget
        self.whole_rows = "all" in (spec.coherence.tokens, spec.monotonicity.tokens)
        self.anchors = anchors
        self.preferences = preferences
        self._room = cache_mb * 2**20
        self._cache: dict[TokenPair, BasePair] = {}

    def remember(
        self, pairs: Sequence[TokenPair], tell: Callable[[BaseSide], None] = lambda _: None
    ) -> None:
        """Compute the base side of anchors and answers, and that of pairs as far as it fits."""
        done, total = 0, len(pairs)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tell(BaseSide(done, total))

        if self.anchors is not None and not (self.anchors.rows or self.anchors.opposites):
            total += len(self.anchors.sides)
            self.anchors.remember(self.budget, advance)
        if self.preferences is not None and not self.preferences.train:
            self.preferences.remember(self.budget, self._head_positions())
        for start in range(0, len(pairs), REMEMBERED_TOGETHER):
            together = pairs[start : start + REMEMBERED_TOGETHER]
            missing = [pair for pair in together if pair not in self._cache]
            if not missing:
                continue
            for pair, base in zip(missing, self._base_pairs(missing), strict=True):
                if base.size > self._room:
                    return
                self._room -= base.size
                self._cache[pair] = base
            advance(len(together))

    def __call__(
        self,
        adapter: Adapter,
        batch: Sequence[TokenPair],
        ramp: float = 1.0,
        neutral: bool = True,
        step: int | None = None,
    ) -> LossReport:
        """Loss of a batch.

        Args:
            adapter: Steers the model at +1 and -1.
            batch: At least two pairs.
            ramp: Factor on the constraints' weights and the focus exponent, 0 to 1.
            neutral: Whether to run the neutral leaves (always when the neutral branch is on).
            step: Optimiser step that anchors and answers are drawn for; None for validation, which
                leaves the answers to `held_out`.
        """
        neutral = neutral or self.spec.neutral is not None
        base = self._known(batch)
        # Every process runs its share of the pairs; the loss is of them all, since sigma and the
        # span of strength are taken over the whole batch.
        own, own_base = distributed.shard(batch), distributed.shard(base)
        drawn = self._drawn(step)
        own_drawn = drawn._replace(
            anchors=distributed.shard(drawn.anchors),
            preferences=distributed.shard(drawn.preferences),
        )
        mine = self._read_steered(adapter, own, own_base, own_drawn, neutral)
        pairs = self._gathered(mine.pairs, len(batch))
        report = terms.combine(base, pairs, self.basis, self.spec, ramp)
        # No ramp: at the start the dial is the base and the term is 0; it only ever grows with it.
        if self.spec.anchor is not None and drawn.anchors:
            reads = self._gathered(mine.anchors, len(drawn.anchors))
            report = terms.with_anchors(report, reads, self.spec.anchor)
        # No ramp either: it is what the dial is for.
        if self.spec.preference is not None and drawn.preferences:
            ratios = self._gathered(mine.ratios, len(drawn.preferences))
            report = terms.with_preference(report, ratios, self.spec.preference)
        return report

    def _drawn(self, step: int | None) -> Drawn:
        """Anchors and answers of an optimiser step, or (None) of a validation batch."""
        return Drawn(
            self.anchors.drawn(step) if self.anchors is not None else [],
            self.preferences.drawn(step)
            if self.preferences is not None and step is not None
            else [],
            self.anchors.coefficient(step) if self.anchors is not None else 1.0,
        )

    @torch.no_grad()
    def held_out(self, adapter: Adapter) -> LossReport | None:
        """The preference term on the held-out answers; None where there are none."""
        if self.preferences is None or self.spec.preference is None:
            return None
        pairs = self.preferences.held_out
        own = Drawn([], distributed.shard(pairs))
        mine = self._read_steered(adapter, [], [], own, neutral=False)
        ratios = self._gathered(mine.ratios, len(pairs))
        questions = [pair.question for pair in pairs]
        return terms.held_out_preference(ratios, questions, self.spec.preference)

    def _known(self, batch: Sequence[TokenPair]) -> list[BasePair]:
        """The base side of each pair, computed where the cache has none."""
        missing = [pair for pair in batch if pair not in self._cache]
        computed = iter(self._base_pairs(missing) if missing else ())
        return [self._cache[pair] if pair in self._cache else next(computed) for pair in batch]

    def _gathered(self, mine: list[T], count: int) -> list[T]:
        """What all processes computed of a batch, that of the others without gradients."""
        processes = distributed.size()
        if processes == 1:
            return mine
        found = distributed.to_device(distributed.all_gather(mine, count), self.lm.device)
        # What comes back is detached: put our own in again, with their gradients.
        for place, pair in zip(range(distributed.rank(), count, processes), mine, strict=True):
            found[place] = pair
        return found

    # -- running the model

    def _rows(
        self, pairs: Sequence[TokenPair], neutral: bool = True
    ) -> tuple[list[tuple[int, ...]], list[int]]:
        """Rows of pairs (two or three per pair, one pair after the other), and their windows."""
        rows, windows = [], []
        for pair in pairs:
            sides = [pair.chosen, pair.rejected] + ([pair.neutral] if neutral else [])
            rows += sides
            windows += [self._window(row, pair) for row in sides]
        return rows, windows

    def _window(self, row: Sequence[int], pair: TokenPair) -> int:
        """Positions that count: the suffix and the token before it, or all.

        The distribution at the token before the suffix is that of its first word.
        """
        return len(row) if self.whole_rows else min(len(row), pair.suffix_len + 1)

    def _side(self, states: RowStates, window: int) -> Side:
        """What the loss needs of one row at c coefficients: depth (c, d), last (c, w, d)."""
        ends = states.depth(slice(-self.last_tokens, None))  # (c, last_tokens, d)
        # In float32 whatever the layers run in: the losses look at differences of these.
        return Side(at_least_single(ends).mean(-2), states.last(slice(-window, None)))

    def _base_pairs(self, pairs: Sequence[TokenPair]) -> list[BasePair]:
        """The base side of pairs, each process having run its share."""
        own = distributed.shard(pairs)
        mine = self._own_base_pairs(own) if own else []
        if distributed.size() == 1:
            return mine
        return distributed.to_device(distributed.all_gather(mine, len(pairs)), self.lm.device)

    @torch.no_grad()
    def _own_base_pairs(self, pairs: Sequence[TokenPair]) -> list[BasePair]:
        rows, windows = self._rows(pairs)
        sides: dict[int, Side] = {}
        for index, states in hidden_states(self.lm, rows, self.budget, depth=self.depth):
            depth, last = self._side(states, windows[index])
            sides[index] = Side(depth[0], last[0])  # one coefficient: (1, d) -> (d,)
        each = [[sides[i], sides[i + 1], sides[i + 2]] for i in range(0, len(rows), 3)]
        reads = self._read_base(pairs, each)
        return [
            BasePair(chosen, rejected, neutral, read)
            for (chosen, rejected, neutral), read in zip(each, reads, strict=True)
        ]

    def _steered(
        self,
        adapter: Adapter,
        pairs: Sequence[TokenPair],
        answered: Sequence[AnchorRow | AnswerRow],
        neutral: bool,
        coefficients: Sequence[float] = SIGNS,
    ) -> tuple[list[list[Side]], list[Tensor]]:
        """Run pairs, and prompts with answers, at +1 and -1 or two other coefficients.

        Returns:
            For each pair its sides, depth (2, d) and last (2, w, d), and for each answer its states
            where it is predicted, (2, t, d).
        """
        pair_rows, windows = self._rows(pairs, neutral)
        # In the same trees: all prompts begin with the header that the pairs' prompts begin with.
        rows = [*pair_rows, *(answer.row for answer in answered)]
        sides: dict[int, Side] = {}
        answers: dict[int, Tensor] = {}
        for index, states in hidden_states(
            self.lm,
            rows,
            self.budget,
            steer=lambda coefficients: adapter.at(self.lm.model, coefficients),
            coefficients=coefficients,
            depth=self.depth,
        ):
            if index < len(pair_rows):
                sides[index] = self._side(states, windows[index])
            else:
                number = index - len(pair_rows)
                answers[number] = states.last(answered[number].window)
        each = 3 if neutral else 2
        return (
            [[sides[i + side] for side in range(each)] for i in range(0, len(pair_rows), each)],
            [answers[i] for i in range(len(answered))],
        )

    # -- reading the output head

    def _head_positions(self) -> int:
        """Positions whose vocabulary-wide tensors fit `head_bytes`, at least one."""
        vocabulary, width = self.lm.model.get_output_embeddings().weight.shape
        return max(1, head_bytes(vocabulary, width) // (vocabulary * 4))  # 4 bytes: float32

    def _head_groups(self, rows_of_pairs: Sequence[int]) -> list[list[int]]:
        """Pairs whose vocabulary-wide tensors fit `head_bytes` together, from the rows of each."""
        vocabulary, width = self.lm.model.get_output_embeddings().weight.shape
        limit = head_bytes(vocabulary, width)
        groups: list[list[int]] = []
        used = 0
        for index, rows in enumerate(rows_of_pairs):
            if not groups or (used + rows) * vocabulary * 4 > limit:  # 4 bytes: float32
                groups.append([])
                used = 0
            groups[-1].append(index)
            used += rows
        return groups

    def _targets(self, pair: TokenPair, sides: Sequence[Side]) -> list[Tensor]:
        """The next tokens within the windows of the chosen and the rejected row, (w - 1,) each."""
        targets = []
        for row, side in zip((pair.chosen, pair.rejected), sides[:2], strict=True):
            window = side.last.shape[-2]
            targets.append(torch.tensor(row[-(window - 1) :], device=self.lm.device))
        return targets

    def _read_base(
        self, pairs: Sequence[TokenPair], sides: Sequence[Sequence[Side]]
    ) -> list[readout.BaseRead]:
        """Numbers of the base model, some pairs at a time."""
        each = [
            readout.Sides(
                last=[],
                base=[side.last for side in of_pair],
                targets=self._targets(pair, of_pair),
                end=pair.suffix_len + 1,
            )
            for pair, of_pair in zip(pairs, sides, strict=True)
        ]
        groups = self._head_groups([sum(len(x.last) for x in of_pair) for of_pair in sides])
        reads: list[readout.BaseRead] = []
        for group in groups:
            reads += readout.read_base(self.lm, [each[i] for i in group])
        return reads

    def _read_steered(
        self,
        adapter: Adapter,
        pairs: Sequence[TokenPair],
        base: Sequence[BasePair],
        drawn: Drawn,
        neutral: bool,
    ) -> Found:
        """The steered side of pairs, anchors and answers: one run, then the head."""
        preferred = [row for pair in drawn.preferences for row in pair.sides]
        together = list(drawn.anchors) if drawn.reach == 1.0 else []
        if not pairs and not drawn.anchors and not preferred:  # a process of a small batch
            return Found([], [], [])
        sides, answers = self._steered(adapter, pairs, [*together, *preferred], neutral)
        cut = len(together)
        anchored, preferred_states = answers[:cut], answers[cut:]
        if drawn.anchors and not together:
            ends = (drawn.reach, -drawn.reach)
            _, anchored = self._steered(adapter, [], drawn.anchors, neutral, ends)
        each = [
            readout.Sides(
                last=[side.last for side in of_pair],
                base=[side.last for side in known.sides],
                targets=self._targets(pair, of_pair),
                end=pair.suffix_len + 1,
            )
            for pair, known, of_pair in zip(pairs, base, sides, strict=True)
        ]
        # Three such rows per position: at +1, at -1 and of the base.
        rows = [3 * sum(side.last.shape[-2] for side in of_pair) for of_pair in sides]
        reads: list[readout.SteeredRead] = []
        for group in self._head_groups(rows):
            reads += readout.read_steered(self.lm, [each[i] for i in group])
        steered = [
            SteeredPair(
                [side.depth for side in of_pair],
                terms.pair_terms(known.read, read, pair.suffix_len, self.spec),
            )
            for pair, known, of_pair, read in zip(pairs, base, sides, reads, strict=True)
        ]
        return Found(
            steered,
            read_anchors(self.lm, drawn.anchors, anchored),
            log_ratios(self.lm, drawn.preferences, preferred_states, self._head_positions()),
        )
