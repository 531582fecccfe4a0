"""The method written the textbook way: what the fast path is measured against, and the slow
reference of its tests.

Nothing here is shared with `pasto_cli.core` but the pairs and the numbers of a recipe: rows are
padded and run in three separate passes (base, +1, -1), each adapted layer holds its dense residual
weight and recomputes its rotation in every forward, and every loss sees the whole vocabulary at
once.

Legend: b pairs, n padded rows (chosen, rejected, neutral of each pair), t tokens, d d_model, k
subspace rank, v vocabulary."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SIGNS = (1.0, -1.0)


class PlainWriter(nn.Module):
    """y = x V R(a) diag(S + a delta) U^T + x W_res^T + bias, with W_res = W - U diag(S) V^T held
    densely.

    Args:
        weight: (d_out, d_in).
        bias: (d_out,) or None.
        factors: U (d_out, r), S (r,), V (d_in, r).
        theta: (r, r), trained.
        delta: (r,), trained.
        bound: `entrywise` or `spectral`.
        max_angle: Radians.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        factors: tuple[Tensor, Tensor, Tensor],
        theta: Tensor,
        delta: Tensor,
        bound: str,
        max_angle: float,
    ) -> None:
        super().__init__()
        self.u, self.s, self.v = factors
        self.residual = weight - self.u @ torch.diag(self.s) @ self.v.T
        self.bias = bias
        self.theta, self.delta = nn.Parameter(theta.clone()), nn.Parameter(delta.clone())
        self.bound, self.max_angle = bound, max_angle
        self.coefficient = 0.0

    def rotation(self) -> Tensor:
        """R(a) = (I - a A / 2)^-1 (I + a A / 2), A bounded."""
        skew = self.theta - self.theta.T
        c = 2 * math.tan(self.max_angle / 2)
        if self.bound == "entrywise":
            skew = c * torch.tanh(skew / c)
        else:
            norm = torch.linalg.matrix_norm(skew, ord=2)
            skew = skew * (c * torch.tanh(norm / c) / norm)
        eye = torch.eye(len(self.delta), dtype=skew.dtype, device=skew.device)
        half = self.coefficient * skew / 2
        return torch.linalg.inv(eye - half) @ (eye + half)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        scaled = torch.diag(self.s + self.coefficient * self.delta)
        y = x @ self.v @ self.rotation() @ scaled @ self.u.T + x @ self.residual.T
        return y if self.bias is None else y + self.bias


class PlainLora(nn.Module):
    """y = x (W + a (A B)^T)^T + bias, the changed weight made anew in every forward.

    Args:
        weight: (d_out, d_in).
        bias: (d_out,) or None.
        a: A (d_in, r), trained.
        b: B (r, d_out), trained.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        self.coefficient = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        y = x @ (self.weight.T + self.coefficient * (self.a @ self.b))
        return y if self.bias is None else y + self.bias


@contextmanager
def adapted(
    model: nn.Module, writers: "dict[str, PlainWriter] | dict[str, PlainLora]"
) -> Iterator[None]:
    """The model with some of its modules replaced."""
    before = {path: model.get_submodule(path) for path in writers}
    try:
        for path, writer in writers.items():
            model.set_submodule(path, writer)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)


def forward(
    model: Any, layer: nn.Module, rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """One padded pass.

    Args:
        model: A transformers causal language model.
        layer: The one whose output is the residual stream at the loss depth.
        rows: Token lists.

    Returns:
        Residual stream (n, t, d), log-probabilities (n, t, v), mask (n, t) of real tokens.
    """
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    device = next(model.parameters()).device
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(
        lambda _m, _x, y: kept.append(y[0] if isinstance(y, tuple) else y)
    )
    try:
        logits = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).logits
    finally:
        hook.remove()
    return kept[0], logits.log_softmax(-1), mask.bool().to(device)


def loss(
    model: Any,
    layer: nn.Module,
    writers: "dict[str, PlainWriter] | dict[str, PlainLora]",
    pairs: Sequence[Any],
    basis: Tensor,
    spec: Any,
    last_tokens: int,
    ramp: float = 1.0,
) -> Tensor:
    """The training loss of a batch by its formulas.

    Args:
        model: The base model.
        layer: See `forward`.
        writers: Module path -> its replacement.
        pairs: With `chosen`, `rejected`, `neutral` token lists and `suffix_len`.
        basis: (d, k).
        spec: `LossesSpec` of a recipe.
        last_tokens: Over which the residual stream is averaged.
        ramp: Factor on the constraints and on the focus exponent.
    """
    rows = [row for p in pairs for row in (p.chosen, p.rejected, p.neutral)]
    with torch.no_grad():
        base = forward(model, layer, rows)
    steered = {}
    with adapted(model, writers):
        for a in SIGNS:
            for writer in writers.values():
                writer.coefficient = a
            steered[a] = forward(model, layer, rows)
    h0, hp, hm = (_ends(x, last_tokens) for x in (base, steered[1.0], steered[-1.0]))  # (b, 3, d)
    d0, dp, dm = (h[:, 0] - h[:, 1] for h in (h0, hp, hm))
    p = basis
    sigma = (d0 @ p).std(0)
    sigma = torch.maximum(sigma, (0.1 * sigma.median()).clamp_min(0.05)).detach()
    exponent = (1 - spec.projection.softness) * ramp

    def aligned(change: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(change @ p / sigma, d0 @ p / sigma, dim=-1, eps=1e-8)
        return (
            cosine
            * ((change @ p).norm(dim=-1) / change.norm(dim=-1).clamp_min(1e-8)).clamp_min(1e-8)
            ** exponent
        )

    s = aligned(dp - d0) * aligned(dm - d0)
    if spec.projection.kind == "scaled":
        s = spec.projection.scale * s + spec.projection.margin
        projection = s + s.relu() ** 2
    else:
        s = s + spec.projection.margin
        s = s + s.relu() ** 2
        projection = s.sign() * s.abs().log1p()
    if spec.projection.orth_weight:
        up, down, along = ((x @ p / sigma) for x in (dp - d0, dm - d0, d0))
        off = (up**2).sum(-1) + (down**2).sum(-1) - 2 * (up * down).sum(-1).abs()
        off = off.relu() / (along**2).sum(-1).clamp_min(1.0)
        projection = projection + spec.projection.orth_weight * (off + 1e-6).sqrt()
    total = spec.projection.weight * projection.mean()
    total = (
        total
        + ramp * _coherence(base, steered, pairs, spec)
        + ramp * _monotonicity(base, steered, pairs, spec)
    )
    if spec.neutral is not None:
        moved = aligned(hm[:, 2] - h0[:, 2]) - aligned(hp[:, 2] - h0[:, 2])
        total = (
            total
            + spec.neutral.orientation_weight * moved.mean()
            + _likeness(base, steered, pairs, spec.neutral)
        )
    return total


def _ends(run: tuple[Tensor, Tensor, Tensor], last_tokens: int) -> Tensor:
    """(b, 3, d): mean of the residual stream over the last real tokens of each row."""
    hidden, _, mask = run
    each = [h[m][-last_tokens:].mean(0) for h, m in zip(hidden, mask, strict=True)]
    return torch.stack(each).reshape(-1, 3, hidden.shape[-1])


def _row(run: tuple[Tensor, Tensor, Tensor], i: int, side: int) -> Tensor:
    """(t, v) log-probabilities of one real row."""
    return run[1][3 * i + side][run[2][3 * i + side]]


def _coherence(base: Any, steered: Any, pairs: Sequence[Any], spec: Any) -> Tensor:
    def penalty(i: int, side: int, a: float) -> Tensor:
        width = pairs[i].suffix_len + 1 if spec.coherence.tokens == "suffix" else None
        log_p, log_p0 = _row(steered[a], i, side), _row(base, i, side)
        if width is not None:
            log_p, log_p0 = log_p[-width:], log_p0[-width:]
        c = spec.coherence
        if c.weight == 0:
            return log_p.sum() * 0
        h = -(log_p0.exp() * log_p0).sum(-1)
        budget = c.kappa * (h + c.beta).sqrt()
        over = (0.5 * (log_p.exp() - log_p0.exp()).abs().sum(-1) - budget).relu()
        if c.barrier == "log1p_squared":
            each = (c.weight * over).log1p() ** 2 + over
        else:
            each = -c.weight * (1 - over / (1 - budget).clamp_min(1e-8)).clamp_min(1e-4).log()
        if c.aggregate == "mean":
            return each.mean()
        if c.aggregate == "max":
            return each.max()
        return c.temperature * ((each / c.temperature).exp().mean()).log()

    values = []
    for i in range(len(pairs)):
        value = (penalty(i, 0, 1.0) + penalty(i, 1, -1.0)) / 2
        if spec.neutral is not None and spec.neutral.coherence:
            value = value + (penalty(i, 2, 1.0) + penalty(i, 2, -1.0)) / 2
        values.append(value)
    return torch.stack(values).mean()


def _monotonicity(base: Any, steered: Any, pairs: Sequence[Any], spec: Any) -> Tensor:
    m = spec.monotonicity

    def side_mean(run: Any, i: int, side: int) -> tuple[Tensor, Tensor]:
        ids = pairs[i].chosen if side == 0 else pairs[i].rejected
        count = pairs[i].suffix_len if m.tokens == "suffix" else len(ids) - 1
        log_p = _row(run, i, side)[-(count + 1) : -1]
        said = torch.tensor(ids[-count:], device=log_p.device)
        return log_p[torch.arange(count), said].mean(), -(log_p.exp() * log_p).sum(-1).mean()

    def gap(run: Any, i: int) -> Tensor:
        return side_mean(run, i, 0)[0] - side_mean(run, i, 1)[0]

    each = range(len(pairs))
    up = torch.stack([gap(steered[1.0], i) - gap(base, i) for i in each])
    down = torch.stack([gap(steered[-1.0], i) - gap(base, i) for i in each])
    entropy = torch.stack([(side_mean(base, i, 0)[1] + side_mean(base, i, 1)[1]) / 2 for i in each])
    threshold = m.frac * entropy.sqrt() + m.floor
    loss = (down + threshold).relu() + (threshold - up).relu()
    if m.variant == "batch":
        mirror = (threshold - down).relu() + (up + threshold).relu()
        loss = mirror if mirror.mean() < loss.mean() else loss
    return m.weight * loss.mean()


def _likeness(base: Any, steered: Any, pairs: Sequence[Any], spec: Any) -> Tensor:
    t = {name: [] for name in ("up", "down", "zero", "cho", "rej")}
    for i, pair in enumerate(pairs):
        end = slice(-(pair.suffix_len + 1), None)
        cho, rej = _row(base, i, 0)[end], _row(base, i, 1)[end]
        rows = {
            "up": _row(steered[1.0], i, 2)[end],
            "down": _row(steered[-1.0], i, 2)[end],
            "zero": _row(base, i, 2)[end],
            "cho": cho,
            "rej": rej,
        }
        for name, log_p in rows.items():
            t[name].append((log_p.exp() * (cho - rej)).sum(-1).mean())
    x = {name: torch.stack(values) for name, values in t.items()}
    half = ((x["cho"] - x["rej"]).mean() / 2).clamp_min(1e-6).detach()
    up, down = (x["up"] - x["zero"]) / half, (x["down"] - x["zero"]) / half
    loss = (spec.margin - up).relu() + (spec.margin + down).relu()
    if spec.ceiling is not None:
        loss = loss + (up - spec.ceiling).relu() + (-down - spec.ceiling).relu()
    return spec.likeness_weight * loss.mean()


def preference(
    model: Any, writers: dict[str, PlainWriter], pairs: Sequence[tuple[Any, Any, Any]], spec: Any
) -> Tensor:
    """The preference term, one row and one coefficient at a time.

    Args:
        model: The base model.
        writers: Module path -> its replacement.
        pairs: Token ids of a prompt, the chosen answer and the rejected one.
        spec: `PreferenceSpec` of a recipe.
    """

    def logp(prompt: Any, answer: Any) -> Tensor:
        rows = torch.tensor([[*prompt, *answer]])
        log_p = model(input_ids=rows).logits[0].log_softmax(-1)
        first = len(prompt) - 1
        return torch.stack([log_p[first + i, token] for i, token in enumerate(answer)])

    def ratio(prompt: Any, answer: Any, a: float) -> Tensor:
        with torch.no_grad():
            base = logp(prompt, answer)
        with adapted(model, writers):
            for writer in writers.values():
                writer.coefficient = a
            return logp(prompt, answer) - base

    total = torch.zeros(())
    for prompt, chosen, rejected in pairs:
        for a in SIGNS:
            up, down = ratio(prompt, chosen, a), ratio(prompt, rejected, a)
            if spec.kind == "margin":
                total = total + (spec.margin - a * (up.mean() - down.mean())).clamp_min(0)
            else:
                wanted = torch.sigmoid(a * spec.beta * (up.sum() - down.sum()))
                total = total - torch.log(wanted)
    return spec.weight * total / len(pairs)
