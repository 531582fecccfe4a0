"""A step and an evaluation of the real training, run on tensors without storage (`meter`).

Everything is the training's own code: token trees, adapter, hooks, losses, the readout of the
vocabulary. What depends on texts that nobody has said yet (the base's answers to anchors, the
model's own answers) stands there with its longest length.

Legend: c coefficients, n nodes, d d_model, v vocabulary.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat, TokenPair
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.linears import linear_sizes
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import (
    Writer,
    decoder_layers,
    find_writers,
    place_writers,
)
from pasto_cli.core.models.tokentree import cut
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.pairs.answers import AnswerSplit
from pasto_cli.core.planning.meter import Meter, fused_attention
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.factors import Factors
from pasto_cli.core.steering.kinds import create_adapter
from pasto_cli.core.training.anchors import AnchorRow, Anchors, longest_answer
from pasto_cli.core.training.objective import SIGNS, Objective
from pasto_cli.core.training.preference import AnswerRow, PreferencePair, Preferences
from pasto_cli.core.training.schedule import make_batches

ANSWER_BEGINNINGS = 12
"""Nodes of a question whose next-token distributions an evaluation reads, about."""


class Stage(NamedTuple):
    """Base and adapter on `meta`, as a training would have them."""

    lm: LoadedModel
    writers: list[Writer]
    placed: list[Writer]
    adapter: Adapter

    @property
    def trained_bytes(self) -> int:
        """Of the trained numbers, once."""
        return sum(p.numel() * p.element_size() for p in self.adapter.parameters())

    @property
    def file_bytes(self) -> int:
        """Of all tensors of the adapter."""
        return sum(
            x.numel() * x.element_size()
            for _, own in self.adapter.items()
            for x in (getattr(own, part) for part in own.PARTS)
        )


class Rehearsal(NamedTuple):
    """What a step and an evaluation hold beside model, adapter and kept base sides."""

    step: int
    """Bytes."""
    low: int
    """Floating-point operations of an optimiser step in products of half precision."""
    single: int
    """The same in products of single precision or more."""
    moved: int
    """Bytes that everything else in a step reads and writes."""
    passes: int
    """Forward passes of a step: trees."""
    nodes: int
    """Distinct tokens of an optimiser step."""
    pair: int
    """Bytes of a pair's kept base side."""
    answers: int
    """Bytes of what is kept of anchors and answers."""
    evaluation: int
    """Bytes."""


def build_stage(config: Any, recipe: Recipe, chat: Chat, dtype: torch.dtype) -> Stage:
    """The base model of a configuration and a fresh adapter for it, both without storage.

    Raises:
        PastoError: If the architecture cannot be built or adapted.
    """
    spec = recipe.adapter
    model = _model_without_storage(config, recipe, dtype)
    layers = decoder_layers(model)[1]
    lm = LoadedModel(model, chat.tokenizer, chat, recipe.model, None, layers)
    writers = find_writers(model)
    placed = place_writers(
        writers, len(layers), spec.first_layer, spec.last_layer, spec.max_modules
    )
    kept: dict[str, Factors] = {}
    for writer in placed:
        d_in, d_out = linear_sizes(writer.module)
        rank = min(spec.rank, d_in, d_out)
        kept[writer.path] = Factors(_empty(d_out, rank), _empty(rank), _empty(d_in, rank))
    adapter = create_adapter(kept, spec, recipe.training.seed).to("meta")
    return Stage(lm, writers, placed, adapter)


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def _model_without_storage(config: Any, recipe: Recipe, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    def build(attention: str) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config,
                attn_implementation=attention,
                dtype=dtype,
                trust_remote_code=recipe.model.trust_remote_code,
            )

    try:
        try:
            model = build(recipe.model.attention)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model = build("eager")
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise PastoError(
            f"{recipe.model.source} is not a causal language model: {str(error).splitlines()[0]}",
            "Check model.source.",
        ) from None
    return model.eval().requires_grad_(False)


def rehearse(
    stage: Stage, recipe: Recipe, pairs: Sequence[TokenPair], anchors: Sequence[Anchor]
) -> Rehearsal:
    """Run a step and an evaluation without storage.

    Args:
        stage: Model and adapter.
        recipe: The recipe.
        pairs: Those that are trained on, at least two.
        anchors: Anchors that are trained on.
    """
    objective = _objective(stage, recipe, anchors)
    batches = make_batches(pairs, recipe.training.batch_size, random.Random(recipe.training.seed))
    trees = [_trees(objective, batch, step) for step, batch in enumerate(batches)]
    nodes = [sum(tree) for tree in trees]
    largest = nodes.index(max(nodes))
    batch, accumulation = batches[largest], min(recipe.training.accumulation, len(batches))
    with Meter() as meter, fused_attention():
        for parameter in stage.lm.model.parameters():
            parameter.detach()  # now it is counted: what lives before the step is not the step's
        stays = meter.now
        objective.remember(batch)
        kept, before = meter.now - stays, meter.now
        meter.restart()
        report = objective(stage.adapter, batch, neutral=False, step=largest)
        report.total.backward()
        step, operations, moved = meter.peak - before, meter.operations, meter.moved
        del report
        stage.adapter.zero_grad(set_to_none=True)
        evaluation = _evaluation(stage, recipe, meter)
    mean = sum(nodes) / len(nodes)
    share = accumulation * mean / nodes[largest]
    low = sum(count for dtype, count in operations.items() if dtype.itemsize < 4)
    return Rehearsal(
        step=step,
        low=round(low * share),
        single=round((operations.total() - low) * share),
        moved=round(moved * share),
        passes=len(trees[largest]),
        nodes=round(mean * accumulation),
        pair=kept // len(batch),
        answers=_kept_answers(objective),
        evaluation=evaluation,
    )


def _evaluation(stage: Stage, recipe: Recipe, meter: Meter) -> int:
    """Bytes of one pass of an evaluation, as many nodes as its budget allows."""
    spec, lm = recipe.evaluation, stage.lm
    coefficients = sorted({*spec.coefficients, *SIGNS})
    before = meter.now
    meter.restart()
    with torch.no_grad():
        for _, states in hidden_states(
            lm,
            [list(range(spec.node_budget))],
            None,
            steer=lambda at: stage.adapter.at(lm.model, at),
            coefficients=coefficients,
        ):
            last = states.last(slice(-ANSWER_BEGINNINGS, None))  # (c, beginnings, d)
            lm.head(last).log_softmax(-1).double()
    return meter.peak - before


def _objective(stage: Stage, recipe: Recipe, anchors: Sequence[Anchor]) -> Objective:
    """The recipe's loss, with answers of the longest length that nobody has given yet."""
    lm, spec, losses = stage.lm, recipe.training, recipe.losses
    trained = preferences = None
    if losses.anchor is not None:
        trained = Anchors(lm, anchors, losses.anchor, spec.seed)
        trained.place(
            [
                _anchor_row(lm, side, longest_answer(side, losses.anchor), number)
                for number, side in enumerate(trained.sides)
            ]
        )
    if losses.preference is not None and recipe.pairs.answers is not None:
        asked = recipe.pairs.answers
        count = round(asked.count * asked.samples * (1 - asked.held_out))
        rows = [
            AnswerRow(row, asked.tokens, _empty(asked.tokens))
            for row in _answered(stage, 2 * count, asked.tokens)
        ]
        preferences = Preferences(lm, AnswerSplit([], []), losses.preference, spec.seed)
        preferences.train = [
            PreferencePair("", *two) for two in zip(rows[::2], rows[1::2], strict=True)
        ]
    return Objective(
        lm,
        _empty(lm.hidden_size, recipe.subspace.rank),
        losses,
        recipe.subspace,
        budget=spec.node_budget,
        cache_mb=float("inf"),
        anchors=trained,
        preferences=preferences,
    )


def _anchor_row(lm: LoadedModel, side: Anchor, length: int, number: int) -> AnchorRow:
    """One side of an anchor with an answer that no other one has."""
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    answer = (token % vocabulary for token in range(number * length, (number + 1) * length))
    base = torch.empty(length, lm.hidden_size, dtype=lm.dtype, device="meta")
    choice = (0, 1) if side.opposite else None
    return AnchorRow((*lm.chat.continued(side.prompt, side.opening), *answer), length, base, choice)


def _answered(stage: Stage, count: int, length: int) -> list[tuple[int, ...]]:
    """Prompts of a dozen words, each with an answer of its own."""
    prompt = stage.lm.chat.prompt("What would you do on a long and quiet afternoon at home?")
    vocabulary = stage.lm.model.get_output_embeddings().weight.shape[0]
    return [
        (*prompt, *(number % vocabulary for number in range(i * length, (i + 1) * length)))
        for i in range(max(count, 2))
    ]


def _trees(objective: Objective, batch: Sequence[TokenPair], step: int) -> list[int]:
    """Nodes of each tree that a step runs."""
    sides = 2 if objective.spec.neutral is None else 3
    rows = [side for pair in batch for side in (pair.chosen, pair.rejected, pair.neutral)[:sides]]
    if objective.anchors is not None:
        rows += [anchor.row for anchor in objective.anchors.drawn(step)]
    if objective.preferences is not None:
        drawn = objective.preferences.drawn(step)
        rows += [answer.row for pair in drawn for answer in pair.sides]
    groups = cut(rows, objective.budget)
    return [_nodes([rows[i] for i in group]) for group in groups]


def _nodes(rows: Sequence[Sequence[int]]) -> int:
    """Distinct beginnings of rows, as `pack` has them, without its mask."""
    children: dict[tuple[int, int], int] = {}
    for row in rows:
        node = -1
        for token in row:
            node = children.setdefault((node, token), len(children))
    return len(children)


def _kept_answers(objective: Objective) -> int:
    """Bytes of the base side of anchors and answers."""
    kept: list[Tensor] = []
    if objective.anchors is not None:
        kept += [row.base for row in objective.anchors.rows]
        kept += [side.base for two in objective.anchors.opposites for side in two]
    if objective.preferences is not None:
        kept += [side.base for pair in objective.preferences.train for side in pair.sides]
    return sum(x.numel() * x.element_size() for x in kept)
