"""From a batch of pairs to one loss: packs the prompts into a token tree, runs it at +1 and -1, and adds up the terms.

The base model's side of a pair does not change during training. It is computed once and kept as hidden states (at the loss
depth, and before the output head at the tokens that count), from which the head recomputes exact probabilities.

Legend: b pairs, w window (positions of one row that count), d d_model, v vocabulary; the two coefficients are +1, -1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pasto_cli.core import losses
from pasto_cli.core.adapter import Adapter
from pasto_cli.core.chat import TokenPair
from pasto_cli.core.forward import run
from pasto_cli.core.models import LoadedModel, at_least_single
from pasto_cli.core.tokentree import cut, pack
from pasto_cli.recipe import LossesSpec, SubspaceSpec

HEAD_BYTES = 2**28
"""Largest vocabulary-wide tensor that a training step holds at once."""
SIGNS = (1.0, -1.0)
"""Coefficients of a training step, in the order of the leading axis."""


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
    """(): penalty on the chosen side at +1, the rejected side at -1 and (if asked) the neutral one at both."""
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
        budget: Nodes of a token tree on the base side.
        cache_mb: Memory for cached base sides.
    """

    def __init__(
        self, lm: LoadedModel, basis: Tensor, spec: LossesSpec, subspace: SubspaceSpec, budget: int, cache_mb: float
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
        """Compute the base side of pairs and keep what fits; pairs are known by identity, so keep them alive."""
        for start in range(0, len(pairs), 32):
            chunk = pairs[start : start + 32]
            for pair, base in zip(chunk, self._base(chunk), strict=True):
                size = sum(t.numel() * t.element_size() for side in base for t in side)
                if size > self._room:
                    return
                self._room -= size
                self._cache[id(pair)] = base

    def __call__(self, adapter: Adapter, batch: Sequence[TokenPair], ramp: float = 1.0, neutral: bool = True) -> LossReport:
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
            for index, computed in zip(missing, self._base([batch[i] for i in missing]), strict=True):
                base[index] = computed
        known = [pair for pair in base if pair is not None]
        steered = self._steered(adapter, batch, neutral)
        return self._combine(known, steered, self._all_terms(batch, known, steered), ramp)

    # -- running the model ----------------------------------------------------------------------------------------------

    def _sides(self, pair: TokenPair, neutral: bool = True) -> list[list[int]]:
        return [pair.chosen, pair.rejected] + ([pair.neutral] if neutral else [])

    def _window(self, row: list[int], pair: TokenPair) -> int:
        """Positions that count: the suffix and the token before it (its distribution is the first word), or all."""
        return len(row) if self.whole_rows else min(len(row), pair.suffix_len + 1)

    def _side(self, states_depth: Tensor, states_last: Tensor, path: Tensor, window: int) -> Side:
        path = path.to(states_depth.device)
        ends = at_least_single(states_depth[..., path[-self.last_tokens :], :])
        return Side(ends.mean(-2), states_last[..., path[-window:], :])

    @torch.no_grad()
    def _base(self, pairs: Sequence[TokenPair]) -> list[BasePair]:
        rows = [row for pair in pairs for row in self._sides(pair)]
        windows = [self._window(row, pair) for pair in pairs for row in self._sides(pair)]
        sides: list[Side] = [Side(self.basis, self.basis)] * len(rows)
        for group in cut(rows, self.budget, self.lm.trees):
            packed = pack([rows[i] for i in group], self.lm.trees)
            states = run(self.lm, packed, depth=self.depth)
            assert states.depth is not None
            for index, path in zip(group, packed.paths, strict=True):
                sides[index] = self._side(states.depth[0], states.last[0], path, windows[index])
        return [BasePair(*sides[i : i + 3]) for i in range(0, len(sides), 3)]

    def _steered(self, adapter: Adapter, batch: Sequence[TokenPair], neutral: bool) -> list[list[Side]]:
        """For each pair its sides at +1 and -1: depth (2, d), last (2, w, d)."""
        rows = [row for pair in batch for row in self._sides(pair, neutral)]
        windows = [self._window(row, pair) for pair in batch for row in self._sides(pair, neutral)]
        packed = pack(rows, self.lm.trees)
        sequences = packed.input_ids.shape[0]
        with adapter.at(self.lm.model, [a for a in SIGNS for _ in range(sequences)]):
            states = run(self.lm, packed, rows=len(SIGNS), depth=self.depth)
        assert states.depth is not None
        sides = [self._side(states.depth, states.last, p, w) for p, w in zip(packed.paths, windows, strict=True)]
        each = 3 if neutral else 2
        return [sides[i : i + each] for i in range(0, len(sides), each)]

    # -- terms ----------------------------------------------------------------------------------------------------------

    def _all_terms(
        self, batch: Sequence[TokenPair], base: Sequence[BasePair], steered: Sequence[Sequence[Side]]
    ) -> list[_PairTerms]:
        """Terms of all pairs, the output head applied to as many positions at once as memory allows.

        One large product reads the head's weight once. Where the batch needs several chunks, their vocabulary-wide tensors
        are computed again in the backward pass instead of being kept.
        """
        vocabulary = self.lm.model.get_output_embeddings().weight.shape[0]
        groups: list[list[int]] = []
        used = 0
        for index, sides in enumerate(steered):
            rows = 3 * sum(side.last.shape[-2] for side in sides)
            if not groups or (used + rows) * vocabulary * 4 > HEAD_BYTES:
                groups.append([])
                used = 0
            groups[-1].append(index)
            used += rows
        terms: list[_PairTerms] = []
        for group in groups:
            pairs, bases = [batch[i] for i in group], [base[i] for i in group]
            last = [side.last for i in group for side in steered[i]]
            if len(groups) == 1 or not torch.is_grad_enabled():
                terms += self._chunk_terms(pairs, bases, *last)
            else:
                again = checkpoint(self._chunk_terms, pairs, bases, *last, use_reentrant=False)
                terms += again  # type: ignore[operator]
        return terms

    def _chunk_terms(self, pairs: Sequence[TokenPair], base: Sequence[BasePair], *last: Tensor) -> list[_PairTerms]:
        """Terms of some pairs; `last` are the steered sides' states (2, w, d), pair by pair."""
        each = len(last) // len(pairs)
        widths = [x.shape[-2] for x in last]
        log_p = self.lm.head(torch.cat(last, dim=1)).log_softmax(-1).split(widths, dim=1)
        with torch.no_grad():
            still = torch.cat([side.last for b in base for side in b[:each]])
            log_p0 = self.lm.head(still).log_softmax(-1).split(widths)
        return [
            self._pair_terms(pair, log_p[i * each : (i + 1) * each], log_p0[i * each : (i + 1) * each])
            for i, pair in enumerate(pairs)
        ]

    def _pair_terms(self, pair: TokenPair, log_p: Sequence[Tensor], log_p0: Sequence[Tensor]) -> _PairTerms:
        """Terms of one pair, from the log-probabilities of its sides: steered (2, w, v), base (w, v)."""
        spec = self.spec
        m = pair.suffix_len
        neutral = len(log_p) == 3
        coherent = m + 1 if spec.coherence.tokens == "suffix" else None
        penalties, variations = [], []
        # Chosen side at +1, rejected side at -1, neutral side at both.
        watched = [(0, 0), (1, 1)] + ([(2, 0), (2, 1)] if neutral else [])
        for side, sign in watched:
            window = slice(None) if coherent is None else slice(-coherent, None)
            tv = losses.total_variation(log_p[side][sign, window], log_p0[side][window])[None]  # (1, t)
            h = losses.entropy(log_p0[side][window])[None]
            if side < 2 or (spec.neutral is not None and spec.neutral.coherence):
                penalties.append(losses.coherence_penalty(tv, h, torch.ones_like(tv, dtype=torch.bool), spec.coherence)[0])
            variations.append(tv.mean())
        gaps, entropies = self._gaps(pair, log_p, log_p0)
        likeness = torch.full((5,), float("nan"), device=self.lm.device)
        if neutral:
            end = slice(-(m + 1), None)
            ratio = log_p0[0][end] - log_p0[1][end]  # (m + 1, v)
            expected = [
                (x.exp() * ratio).sum(-1).mean(-1) for x in (log_p[2][:, end], log_p0[2][end], log_p0[0][end], log_p0[1][end])
            ]
            likeness = torch.cat([expected[0], torch.stack(expected[1:])])
        coherence = torch.stack(penalties[:2]).mean() + (torch.stack(penalties[2:]).mean() if penalties[2:] else 0.0)
        return _PairTerms(coherence, torch.stack(variations).mean().detach(), gaps, entropies, likeness)

    def _gaps(self, pair: TokenPair, log_p: Sequence[Tensor], log_p0: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """G at +1, -1, 0 (3,), and the base entropy over the same tokens of both sides ()."""
        means, entropies = [], []
        for side, row in enumerate((pair.chosen, pair.rejected)):
            tokens = pair.suffix_len if self.spec.monotonicity.tokens == "suffix" else len(row) - 1
            target = torch.tensor(row[-tokens:], device=self.lm.device)
            both = torch.cat([log_p[side], log_p0[side][None]])[:, -(tokens + 1) : -1]  # (3, tokens, v)
            means.append(both.gather(-1, target.expand(3, -1)[..., None])[..., 0].mean(-1))
            entropies.append(losses.entropy(log_p0[side][-(tokens + 1) : -1]).mean())
        return means[0] - means[1], torch.stack(entropies).mean()

    def _combine(
        self, base: Sequence[BasePair], steered: Sequence[Sequence[Side]], terms: Sequence[_PairTerms], ramp: float
    ) -> LossReport:
        spec = self.spec
        d_ref = torch.stack([b.chosen.depth - b.rejected.depth for b in base])  # (b, d)
        d_pos, d_neg = (torch.stack([s[0].depth[i] - s[1].depth[i] for s in steered]) for i in (0, 1))
        projection = losses.projection_loss(d_ref, d_pos, d_neg, self.basis, spec.projection, ramp)
        gap = torch.stack([t.gap for t in terms])  # (b, 3)
        gap_pos, gap_neg = gap[:, 0] - gap[:, 2], gap[:, 1] - gap[:, 2]
        h = torch.stack([t.entropy for t in terms])
        parts = {
            "projection": projection.loss.mean(),
            "coherence": ramp * torch.stack([t.coherence for t in terms]).mean(),
            "monotonicity": ramp * losses.monotonicity_loss(gap_neg, gap_pos, h, spec.monotonicity).mean(),
        }
        watch = {
            "cos_pos": projection.cos_pos.mean(), "cos_neg": projection.cos_neg.mean(),
            "antiparallel": projection.antiparallelism.mean(), "gap_pos": gap_pos.mean(), "gap_neg": gap_neg.mean(),
            "tv": torch.stack([t.tv for t in terms]).mean(),
        }  # fmt: skip
        if len(steered[0]) == 3:
            t = torch.stack([term.likeness for term in terms])  # (b, 5)
            s = losses.strength(*t.unbind(1))
            watch |= {"strength_pos": s.pos.mean(), "strength_neg": s.neg.mean()}
            if spec.neutral is not None:
                shifts = [
                    torch.stack([x[2].depth[i] - y.neutral.depth for x, y in zip(steered, base, strict=True)]) for i in (0, 1)
                ]
                o = losses.orientation(shifts[0], shifts[1], d_ref, self.basis, spec.projection.softness, ramp)
                parts["orientation"] = spec.neutral.orientation_weight * (o.neg - o.pos).mean()
                parts["likeness"] = losses.likeness_loss(s, spec.neutral).mean()
                watch |= {"orientation_pos": o.pos.mean(), "orientation_neg": o.neg.mean()}
        total = torch.stack(list(parts.values())).sum()
        return LossReport(total, _floats(parts), _floats(watch))


def _floats(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in tensors.items()}
