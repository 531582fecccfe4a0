"""From a batch of pairs to one loss: packs the prompts into a token tree, runs it at +1 and -1, and
adds up the terms.

The base model's side of a pair does not change during training. It is computed once and kept as
hidden states (at the loss depth, and before the output head at the tokens that count), from which
the head recomputes exact probabilities.

Legend: b pairs, w window (positions of one row that count), d d_model, v vocabulary; the two
coefficients are +1, -1."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.models.forward import run_packed
from pasto_cli.core.models.loaded import LoadedModel, at_least_single
from pasto_cli.core.models.tokentree import cut, pack
from pasto_cli.core.recipe.schema import LossesSpec, SubspaceSpec
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.training import losses, readout

SIGNS = (1.0, -1.0)
"""Coefficients of a training step, in the order of the leading axis."""


def head_bytes(vocabulary: int, width: int) -> int:
    """Bytes of vocabulary-wide rows that a training step holds at once (a pair's at least); a few
    such tensors come and go.

    Each product reads the whole output head (vocabulary, width), which has to pay: half of what
    that holds in float32."""
    return max(2**25, vocabulary * width * 2)


class Side(NamedTuple):
    """One row of a pair (chosen, rejected or neutral): what the loss needs of it."""

    depth: Tensor
    """(..., d) float32: residual stream at the loss depth, mean over the last tokens."""
    last: Tensor
    """(..., w, d): hidden states before the output head at the window."""


class BasePair(NamedTuple):
    """The base model's side of a pair."""

    chosen: Side
    rejected: Side
    neutral: Side
    read: readout.BaseRead

    @property
    def sides(self) -> tuple[Side, Side, Side]:
        """Chosen, rejected, neutral."""
        return self.chosen, self.rejected, self.neutral

    @property
    def size(self) -> int:
        """Bytes."""
        tensors = [
            *(t for side in self.sides for t in side),
            *self.read.entropy,
            *self.read.said,
            self.read.expected,
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


class LossReport(NamedTuple):
    """Loss of a batch and what it consists of."""

    total: Tensor
    """Scalar, differentiable."""
    parts: dict[str, float]
    """Each term, as weighted into the total."""
    diagnostics: dict[str, float]
    """Cosines, gaps, total variation, strength: what to watch."""


class _PairTerms(NamedTuple):
    """Head-side quantities of one pair."""

    coherence: Tensor
    """(): penalty on the chosen side at +1, the rejected side at -1 and (if asked) the neutral one
    at both."""
    tv: Tensor
    """(): mean total variation, for the log."""
    gap: Tensor
    """(3,): g at +1, -1 and 0: mean log p(next | cho) - log p(next | rej), nats."""
    entropy: Tensor
    """(): mean base entropy over both sides, nats."""
    likeness: Tensor
    """(5,): T at +1, -1, 0, and of the chosen and rejected prompts."""


class Objective:
    """The loss of the method for one model, subspace and set of terms.

    Args:
        lm: The base model.
        basis: P (d, k).
        spec: The recipe's losses.
        subspace: For the loss depth and the number of last tokens.
        budget: Nodes of a token tree.
        cache_mb: Memory for cached base sides.
    """

    def __init__(
        self,
        lm: LoadedModel,
        basis: Tensor,
        spec: LossesSpec,
        subspace: SubspaceSpec,
        budget: int,
        cache_mb: float,
    ) -> None:
        self.lm = lm
        self.basis = basis.to(lm.device)
        self.spec = spec
        self.depth = lm.depth_index(subspace.depth)
        self.last_tokens = subspace.last_tokens
        self.budget = budget
        self.whole_rows = "all" in (spec.coherence.tokens, spec.monotonicity.tokens)
        self._room = cache_mb * 2**20
        self._cache: dict[int, BasePair] = {}

    def remember(self, pairs: Sequence[TokenPair]) -> None:
        """Compute the base side of pairs and keep what fits; pairs are known by identity, so keep
        them alive."""
        for start in range(0, len(pairs), 32):
            chunk = [pair for pair in pairs[start : start + 32] if id(pair) not in self._cache]
            if not chunk:
                continue
            for pair, base in zip(chunk, self._bases(chunk), strict=True):
                if base.size > self._room:
                    return
                self._room -= base.size
                self._cache[id(pair)] = base

    def __call__(
        self, adapter: Adapter, batch: Sequence[TokenPair], ramp: float = 1.0, neutral: bool = True
    ) -> LossReport:
        """Loss of a batch.

        Args:
            adapter: Steers the model at +1 and -1.
            batch: At least two pairs.
            ramp: Factor on the constraints' weights and the focus exponent, 0 to 1.
            neutral: Whether to run the neutral leaves (always when the neutral branch is on).
        """
        neutral = neutral or self.spec.neutral is not None
        base = [self._cache.get(id(pair)) for pair in batch]
        if missing := [i for i, known in enumerate(base) if known is None]:
            for index, computed in zip(
                missing, self._bases([batch[i] for i in missing]), strict=True
            ):
                base[index] = computed
        known = [pair for pair in base if pair is not None]
        own = distributed.shard(batch)
        steered = self._steered(adapter, own, neutral) if own else []
        terms = self._all_terms(own, distributed.shard(known), steered) if own else []
        ends = [[side.depth for side in sides] for sides in steered]
        return self._combine(known, *self._whole(ends, terms, len(batch)), ramp)

    def _whole(
        self, ends: list[list[Tensor]], terms: list[_PairTerms], count: int
    ) -> tuple[list[list[Tensor]], list[_PairTerms]]:
        """The batch's residual streams and terms, those of other processes without gradients."""
        if distributed.size() == 1:
            return ends, terms
        each = list(zip(ends, terms, strict=True))
        others = distributed.to_device(distributed.all_gather(each, count), self.lm.device)
        whole = [
            each[i // distributed.size()]
            if i % distributed.size() == distributed.rank()
            else others[i]
            for i in range(count)
        ]
        return [e for e, _ in whole], [t for _, t in whole]

    # -- running the model
    # ----------------------------------------------------------------------------------------------

    def _sides(self, pair: TokenPair, neutral: bool = True) -> list[list[int]]:
        return [pair.chosen, pair.rejected] + ([pair.neutral] if neutral else [])

    def _window(self, row: list[int], pair: TokenPair) -> int:
        """Positions that count: the suffix and the token before it (its distribution is the first
        word), or all."""
        return len(row) if self.whole_rows else min(len(row), pair.suffix_len + 1)

    def _side(self, states_depth: Tensor, states_last: Tensor, path: Tensor, window: int) -> Side:
        path = path.to(states_depth.device)
        ends = at_least_single(states_depth[..., path[-self.last_tokens :], :])
        return Side(ends.mean(-2), states_last[..., path[-window:], :])

    def _bases(self, pairs: Sequence[TokenPair]) -> list[BasePair]:
        """The base side of pairs, each process having run its share."""
        own = distributed.shard(pairs)
        mine = self._base(own) if own else []
        return (
            mine
            if distributed.size() == 1
            else distributed.to_device(distributed.all_gather(mine, len(pairs)), self.lm.device)
        )

    @torch.no_grad()
    def _base(self, pairs: Sequence[TokenPair]) -> list[BasePair]:
        rows = [row for pair in pairs for row in self._sides(pair)]
        windows = [self._window(row, pair) for pair in pairs for row in self._sides(pair)]
        sides: list[Side] = [Side(self.basis, self.basis)] * len(rows)
        for group in cut(rows, self.budget, self.lm.trees):
            packed = pack([rows[i] for i in group], self.lm.trees)
            states = run_packed(self.lm, packed, depth=self.depth)
            assert states.depth is not None
            for index, path in zip(group, packed.paths, strict=True):
                sides[index] = self._side(states.depth[0], states.last[0], path, windows[index])
        each = [sides[i : i + 3] for i in range(0, len(sides), 3)]
        return [
            BasePair(s[0], s[1], s[2], read)
            for s, read in zip(each, self._read_base(pairs, each), strict=True)
        ]

    def _steered(
        self, adapter: Adapter, batch: Sequence[TokenPair], neutral: bool
    ) -> list[list[Side]]:
        """For each pair its sides at +1 and -1: depth (2, d), last (2, w, d)."""
        rows = [row for pair in batch for row in self._sides(pair, neutral)]
        windows = [self._window(row, pair) for pair in batch for row in self._sides(pair, neutral)]
        sides: list[Side] = [Side(self.basis, self.basis)] * len(rows)
        # Attention costs the square of a tree's nodes, so that several trees may cost less than
        # one.
        trees = [
            (group, pack([rows[i] for i in group], self.lm.trees))
            for group in cut(rows, self.budget, self.lm.trees)
        ]
        for sequences, alike in groupby(trees, key=lambda tree: tree[1].input_ids.shape[0]):
            with adapter.at(self.lm.model, [a for a in SIGNS for _ in range(sequences)]):
                for group, packed in alike:
                    states = run_packed(self.lm, packed, copies=len(SIGNS), depth=self.depth)
                    assert states.depth is not None
                    for index, path in zip(group, packed.paths, strict=True):
                        sides[index] = self._side(states.depth, states.last, path, windows[index])
        each = 3 if neutral else 2
        return [sides[i : i + each] for i in range(0, len(sides), each)]

    # -- terms
    # ----------------------------------------------------------------------------------------------------------

    def _groups(self, widths: Sequence[int]) -> list[list[int]]:
        """Pairs whose vocabulary-wide tensors fit `head_bytes` together, from the rows of each."""
        vocabulary, width = self.lm.model.get_output_embeddings().weight.shape
        limit = head_bytes(vocabulary, width)
        groups: list[list[int]] = []
        used = 0
        for index, rows in enumerate(widths):
            if not groups or (used + rows) * vocabulary * 4 > limit:
                groups.append([])
                used = 0
            groups[-1].append(index)
            used += rows
        return groups

    def _targets(self, pair: TokenPair, sides: Sequence[Side]) -> list[Tensor]:
        """The next tokens within the windows of the chosen and the rejected row."""
        rows = zip((pair.chosen, pair.rejected), sides, strict=False)
        return [
            torch.tensor(row[-(side.last.shape[-2] - 1) :], device=self.lm.device)
            for row, side in rows
        ]

    def _read_base(
        self, pairs: Sequence[TokenPair], sides: Sequence[Sequence[Side]]
    ) -> list[readout.BaseRead]:
        each = [
            readout.Sides([], [x.last for x in s], self._targets(pair, s), pair.suffix_len + 1)
            for pair, s in zip(pairs, sides, strict=True)
        ]
        groups = self._groups([sum(len(x.last) for x in s) for s in sides])
        return [
            read
            for group in groups
            for read in readout.read_base(self.lm, [each[i] for i in group])
        ]

    def _all_terms(
        self,
        batch: Sequence[TokenPair],
        base: Sequence[BasePair],
        steered: Sequence[Sequence[Side]],
    ) -> list[_PairTerms]:
        """Head-side terms of all pairs, some at a time."""
        each = [
            readout.Sides(
                [x.last for x in s],
                [x.last for x in b.sides],
                self._targets(pair, s),
                pair.suffix_len + 1,
            )
            for pair, b, s in zip(batch, base, steered, strict=True)
        ]
        groups = self._groups([3 * sum(x.last.shape[-2] for x in s) for s in steered])
        reads = [
            read
            for group in groups
            for read in readout.read_steered(self.lm, [each[i] for i in group])
        ]
        return [
            self._pair_terms(pair, b.read, read)
            for pair, b, read in zip(batch, base, reads, strict=True)
        ]

    def _pair_terms(
        self, pair: TokenPair, base: readout.BaseRead, steered: readout.SteeredRead
    ) -> _PairTerms:
        """Terms of one pair."""
        spec = self.spec
        coherent = (
            slice(-(pair.suffix_len + 1), None)
            if spec.coherence.tokens == "suffix"
            else slice(None)
        )
        penalties = []
        for (side, _), tv in zip(readout.WATCHED, steered.tv, strict=False):
            if side != readout.NEUTRAL or (spec.neutral is not None and spec.neutral.coherence):
                seen, h = tv[None, coherent], base.entropy[side][None, coherent]  # (1, t)
                penalties.append(
                    losses.coherence_penalty(
                        seen, h, torch.ones_like(seen, dtype=torch.bool), spec.coherence
                    )[0]
                )
        variation = torch.stack([tv[coherent].mean() for tv in steered.tv]).mean().detach()
        coherence = torch.stack(penalties[:2]).mean() + (
            torch.stack(penalties[2:]).mean() if penalties[2:] else 0.0
        )
        # The mean log-probability of the suffix's tokens, or of all but the first.
        scored = (
            slice(-pair.suffix_len, None) if spec.monotonicity.tokens == "suffix" else slice(None)
        )
        means = [
            torch.cat([at[:, scored], still[None, scored]]).mean(-1)
            for at, still in zip(steered.said, base.said, strict=True)
        ]  # (3,): +1, -1, 0
        entropies = torch.stack([h[:-1][scored].mean() for h in base.entropy[:2]])
        if steered.expected is None:
            likeness = torch.full((5,), float("nan"), device=self.lm.device)
        else:
            likeness = torch.cat([steered.expected, base.expected])
        return _PairTerms(coherence, variation, means[0] - means[1], entropies.mean(), likeness)

    def _combine(
        self,
        base: Sequence[BasePair],
        ends: Sequence[Sequence[Tensor]],
        terms: Sequence[_PairTerms],
        ramp: float,
    ) -> LossReport:
        spec = self.spec
        d_ref = torch.stack([b.chosen.depth - b.rejected.depth for b in base])  # (b, d)
        d_pos, d_neg = (torch.stack([e[0][i] - e[1][i] for e in ends]) for i in (0, 1))
        projection = losses.projection_loss(d_ref, d_pos, d_neg, self.basis, spec.projection, ramp)
        gap = torch.stack([t.gap for t in terms])  # (b, 3)
        gap_pos, gap_neg = gap[:, 0] - gap[:, 2], gap[:, 1] - gap[:, 2]
        h = torch.stack([t.entropy for t in terms])
        parts = {
            "projection": projection.loss.mean(),
            "coherence": ramp * torch.stack([t.coherence for t in terms]).mean(),
            "monotonicity": ramp
            * losses.monotonicity_loss(gap_neg, gap_pos, h, spec.monotonicity).mean(),
        }
        watch = {
            "cos_pos": projection.cos_pos.mean(),
            "cos_neg": projection.cos_neg.mean(),
            "antiparallel": projection.antiparallelism.mean(),
            "gap_pos": gap_pos.mean(),
            "gap_neg": gap_neg.mean(),
            "tv": torch.stack([t.tv for t in terms]).mean(),
        }
        if len(ends[0]) == 3:
            t = torch.stack([term.likeness for term in terms])  # (b, 5)
            s = losses.strength(*t.unbind(1))
            watch |= {"strength_pos": s.pos.mean(), "strength_neg": s.neg.mean()}
            if spec.neutral is not None:
                shifts = [
                    torch.stack(
                        [x[2][i] - y.neutral.depth for x, y in zip(ends, base, strict=True)]
                    )
                    for i in (0, 1)
                ]
                o = losses.orientation(
                    shifts[0], shifts[1], d_ref, self.basis, spec.projection.softness, ramp
                )
                parts["orientation"] = spec.neutral.orientation_weight * (o.neg - o.pos).mean()
                parts["likeness"] = losses.likeness_loss(s, spec.neutral).mean()
                watch |= {"orientation_pos": o.pos.mean(), "orientation_neg": o.neg.mean()}
        total = torch.stack(list(parts.values())).sum()
        return LossReport(total, _floats(parts), _floats(watch))


def _floats(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in tensors.items()}
