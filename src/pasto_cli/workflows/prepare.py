"""From a pair set to what training needs: tokens, adapter, loss subspace, objective."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.elicitation import elicit
from pasto_cli.core.models import distributed
from pasto_cli.core.models.activations import Activations, collect_activations
from pasto_cli.core.models.chat import TokenPair, require_pairs, tokenise_pairs
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import Writer, find_writers, place_writers
from pasto_cli.core.pairs.anchors import (
    Anchor,
    AnchorSplit,
    load_anchors,
    require_no_overlap,
    split_anchors,
)
from pasto_cli.core.pairs.answers import AnswerSplit
from pasto_cli.core.pairs.pairs import PairSet
from pasto_cli.core.pairs.split import split_pairs
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.subspace_expression import parse_subspace
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.factors import Factors, select_directions
from pasto_cli.core.steering.kinds import create_adapter
from pasto_cli.core.training import checkpoint, subspaces
from pasto_cli.core.training.anchors import Anchors
from pasto_cli.core.training.directions import choose_directions
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.preference import Preferences
from pasto_cli.core.training.svd_cache import decompose_writer
from pasto_cli.workflows.progress import Watcher

ELICITATION_PAIRS = 24
"""Pairs on which the personas are tried before training."""
ELICITATION_ITEMS = 6
"""Questions of mini-dilemmas that each persona answers there."""
LOW_SHARE = 0.25
"""Share of the mean chosen - rejected state in the loss subspace below which a user is warned."""


class Tokens(NamedTuple):
    """The split of a pair set, in tokens."""

    train: list[TokenPair]
    validation: list[TokenPair]
    certificate: list[TokenPair]
    num_prompts: int
    """Different neutral prompts of the certificate."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of pairs of each part, as pasto.json has it."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "certificate": len(self.certificate),
        }


def tokenise_recipe(pair_set: PairSet, recipe: Recipe, lm: LoadedModel, watch: Watcher) -> Tokens:
    """The recipe's split of a pair set in tokens.

    Pairs that this tokenizer spoils are dropped, with a warning.

    Raises:
        PastoError: If a part of the split is too small to be of use.
    """
    spec = recipe.training
    split = split_pairs(
        pair_set.pairs,
        validation=spec.validation,
        certificate=spec.certificate,
        seed=spec.seed,
    )
    parts = [tokenise_pairs(part, lm.chat) for part in split]
    dropped: Counter[str] = sum((reasons for _, reasons in parts), Counter())
    for why, count in dropped.items():
        watch.warn(f"{count} pairs dropped: {why}")
    require_pairs([p for kept, _ in parts for p in kept], dropped)
    train_part, validation, certificate = (kept for kept, _ in parts)
    if len(train_part) < 2 or not validation or not certificate:
        raise PastoError(
            f"{len(train_part)} training, {len(validation)} validation and {len(certificate)} "
            f"certificate pairs are too few",
            "Raise pairs.count or add suffixes.",
        )
    prompts = {p.neutral[: -p.suffix_len] for p in certificate}
    return Tokens(train_part, validation, certificate, len(prompts))


def check_elicitation(
    lm: LoadedModel, pair_set: PairSet, tokens: Tokens, recipe: Recipe, watch: Watcher
) -> None:
    """Whether the personas move the clean base model: a dial can only learn what they do.

    Raises:
        PastoError: If they do not move it at all.
    """
    first = pair_set.pairs[0]
    with watch.task("do the personas move the base model?"):
        found = elicit(
            lm,
            tokens.train[:ELICITATION_PAIRS],
            (first.chosen, first.rejected),
            load_benchmark("mini-dilemmas"),
            recipe.training.node_budget,
            ELICITATION_ITEMS,
        )
    watch.elicitation(found)
    if not found.span.value > 1e-6:  # not, since it may be NaN
        raise PastoError(
            "the two personas do not move the base model at all: there is no direction to learn",
            f"Compare {first.chosen!r} with {first.rejected!r}; choose words that contrast.",
        )
    if found.weak:
        watch.warn(
            f"the personas hardly move this model ({found.span.value:.4f} nats per token): expect "
            f"noise. Try stronger words, other templates or a larger model."
        )


def recipe_anchors(recipe: Recipe) -> AnchorSplit | None:
    """The recipe's anchors, split into trained and held-out ones; None where it has none.

    Raises:
        PastoError: If they cannot be read, lack questions asked both ways that the recipe wants, or
            were taken from the recipe's own benchmark.
    """
    spec = recipe.losses.anchor
    if spec is None:
        return None
    anchors = load_anchors(spec.prompts, opposites=spec.opposites > 0)
    if spec.opposites > 0 and not any(anchor.opposite for anchor in anchors):
        raise PastoError(
            f"losses.anchor.opposites is above 0, and {spec.prompts} asks no question both ways",
            "Write losses.anchor.opposites: 0, or add lines with a question, a tab, how the reply "
            "begins (or nothing), a tab, and the opposite question.",
        )
    require_own(recipe, anchors, "anchors")
    return split_anchors(anchors, spec.held_out, recipe.training.seed)


def require_own(recipe: Recipe, prompts: Sequence[Anchor], what: str) -> None:
    """Refuse prompts to train on that were taken from the recipe's own benchmark.

    Raises:
        PastoError: With how many, and the first one.
    """
    name = recipe.evaluation.benchmark
    if name == "dailydilemmas":  # which may have to be fetched from the Hub first
        return
    if name == "sentiment":
        asked = bundled.lines("sentiment_prompts.txt")
    else:
        # What all prompts share, the instruction, stands first; before a reply there is none.
        asked = [
            item.prompt if item.whole else item.prompt.partition("\n\n")[2] or item.prompt
            for item in load_benchmark(name).items
        ]
    require_no_overlap(prompts, asked, name, what)


def prepare_or_restore(
    lm: LoadedModel,
    tokens: Tokens,
    recipe: Recipe,
    folder: Path,
    watch: Watcher,
    anchors: AnchorSplit | None = None,
    answers: AnswerSplit | None = None,
) -> tuple[Adapter, Objective]:
    """A fresh adapter and the loss, from the checkpoint of a run's folder where there is one."""
    start = checkpoint.load_start(folder, recipe.adapter)
    if start is not None:
        adapter, basis = start
        return adapter.to(lm.device), make_objective(lm, basis, recipe, anchors, answers)
    adapter, objective = prepare(lm, tokens, recipe, watch, anchors, answers)
    checkpoint.save_start(folder, adapter, objective.basis)
    return adapter, objective


def prepare(
    lm: LoadedModel,
    tokens: Tokens,
    recipe: Recipe,
    watch: Watcher,
    anchors: AnchorSplit | None = None,
    answers: AnswerSplit | None = None,
) -> tuple[Adapter, Objective]:
    """A fresh adapter and the loss: activations, decompositions, directions, loss subspace."""
    spec, space = recipe.adapter, recipe.subspace
    writers = find_writers(lm.model)
    placed = place_writers(
        writers, len(lm.layers), spec.first_layer, spec.last_layer, spec.max_modules
    )
    sample = tokens.train[: spec.activation_pairs]
    depth = lm.depth_index(space.depth)
    with watch.task(f"activations of {len(sample)} pairs, decomposing {len(placed)} modules"):
        # Its copies of weights are gone before whole decompositions need the memory.
        with layer_precision(lm, recipe.training.precision):
            states = _collect(lm, sample, placed, depth, recipe)
        difference = (states.hidden[0::2] - states.hidden[1::2])[:, depth]  # (n, d)
        if not difference.any():  # layers of convolutions look a few tokens back only
            raise PastoError(
                f"the personas leave no trace at the end of the prompt after layer {depth} of "
                f"{len(lm.layers)}, where the loss looks",
                "Raise subspace.depth: no layer before it looks back as far as the persona.",
            )
        factors = _choose_factors(placed, states, recipe)
        basis = _loss_basis(lm, writers, states, depth, recipe)
    share = subspaces.captured_share(basis, difference)
    text = (
        f"loss subspace {space.expression!r}, rank {basis.shape[1]}, captures {share:.0%} of the "
        f"mean chosen - rejected state"
    )
    if share < LOW_SHARE:
        watch.warn(text)
    else:
        watch.note(text)
    adapter = create_adapter(factors, spec, recipe.training.seed).to(lm.device)
    basis = basis.to(lm.device).contiguous()
    # Processes on unlike processors may round otherwise: all begin with the first one's numbers.
    distributed.broadcast([*adapter.state_dict().values(), basis])
    watch.note(f"adapter: {len(placed)} modules, {adapter.num_parameters():,} parameters")
    if (rank := max(len(kept.s) for kept in factors.values())) < spec.rank:
        watch.note(f"no module has {spec.rank} directions: the adapter has rank {rank}")
    return adapter, make_objective(lm, basis, recipe, anchors, answers)


def _collect(
    lm: LoadedModel,
    sample: Sequence[TokenPair],
    placed: Sequence[Writer],
    depth: int,
    recipe: Recipe,
) -> Activations:
    """Activations of the clean base model, of no more layers than somebody will look at."""
    inputs_of = placed if recipe.adapter.directions == "activation" else []
    # The last layers matter to the suppressed directions alone.
    names = {term.name for term in parse_subspace(recipe.subspace.expression)}
    layers = None if "suppressed" in names else max(depth, placed[-1].layer + 1)
    return collect_activations(lm, sample, inputs_of, recipe.training.node_budget, layers)


def _choose_factors(
    placed: Sequence[Writer], states: Activations, recipe: Recipe
) -> dict[str, Factors]:
    """For each module its singular directions that the adapter starts from."""
    spec, kept = recipe.adapter, {}
    for writer in placed:
        # One at a time: full decompositions of a large model do not fit together.
        factors = decompose_writer(writer)
        chosen = choose_directions(
            spec.directions, writer, factors, states, rank=spec.rank, seed=recipe.training.seed
        )
        kept[writer.path] = select_directions(factors, chosen)
    return kept


def _loss_basis(
    lm: LoadedModel, writers: Sequence[Writer], states: Activations, depth: int, recipe: Recipe
) -> Tensor:
    """P (d, k) of the recipe's expression, on the CPU."""
    space = recipe.subspace
    return subspaces.build(
        parse_subspace(space.expression),
        subspaces.SubspaceInputs(
            states.hidden,
            lm.readout,
            lambda: (dense_weight(writer.module) for writer in writers),
        ),
        rank=space.rank,
        depth=depth,
        center=space.center,
        seed=recipe.training.seed,
    )


def make_objective(
    lm: LoadedModel,
    basis: Tensor,
    recipe: Recipe,
    anchors: AnchorSplit | None = None,
    answers: AnswerSplit | None = None,
) -> Objective:
    """The recipe's loss on a loss subspace (d, k)."""
    spec = recipe.training
    trained = preferences = None
    if recipe.losses.anchor is not None and anchors is not None:
        trained = Anchors(lm, anchors.train, recipe.losses.anchor, spec.seed)
    if recipe.losses.preference is not None and answers is not None:
        preferences = Preferences(lm, answers, recipe.losses.preference, spec.seed)
    return Objective(
        lm,
        basis,
        recipe.losses,
        recipe.subspace,
        budget=spec.node_budget,
        cache_mb=spec.base_cache_mb,
        anchors=trained,
        preferences=preferences,
    )
