"""From a pair set to what training needs: tokens, adapter, loss subspace, objective."""

from typing import NamedTuple

from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.elicitation import elicit
from pasto_cli.core.models import distributed
from pasto_cli.core.models.activations import collect_activations
from pasto_cli.core.models.chat import TokenPair, require_pairs, tokenise_pairs
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import dense_weight, find_writers, place_writers
from pasto_cli.core.pairs.pairs import PairSet
from pasto_cli.core.pairs.split import split_pairs
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.subspace_expression import parse_subspace
from pasto_cli.core.steering.adapter import Adapter, select_directions
from pasto_cli.core.training import subspaces
from pasto_cli.core.training.directions import choose_directions
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.svd_cache import decompose_writer
from pasto_cli.workflows.progress import Watcher


class Tokens(NamedTuple):
    """The split of a pair set, in tokens."""

    train: list[TokenPair]
    validation: list[TokenPair]
    certificate: list[TokenPair]
    num_prompts: int
    """Different neutral prompts of the certificate."""


def tokenise_recipe(pair_set: PairSet, recipe: Recipe, lm: LoadedModel, watch: Watcher) -> Tokens:
    """The recipe's split of a pair set in tokens; pairs that this tokenizer spoils are dropped,
    with a warning.

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
    dropped = sum((d for _, d in parts), start=parts[0][1].__class__())
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
    prompts = {tuple(p.neutral[: -p.suffix_len]) for p in certificate}
    return Tokens(train_part, validation, certificate, len(prompts))


def _check_elicitation(
    lm: LoadedModel, pair_set: PairSet, tokens: Tokens, recipe: Recipe, watch: Watcher
) -> None:
    first = pair_set.pairs[0]
    sample = tokens.train[:24]
    with watch.task("do the personas move the base model?"):
        found = elicit(
            lm,
            sample,
            (first.chosen, first.rejected),
            load_benchmark("mini-dilemmas"),
            recipe.training.node_budget,
        )
    watch.elicitation(found)
    if not found.span.value > 1e-6:
        raise PastoError(
            "the two personas do not move the base model at all: there is no direction to learn",
            f"Compare {first.chosen!r} with {first.rejected!r}; choose words that contrast.",
        )
    if found.weak:
        watch.warn(
            f"the personas hardly move this model ({found.span.value:.4f} nats a token): expect "
            f"noise. "
            "Try stronger words, other templates or a larger model."
        )


def prepare(
    lm: LoadedModel, tokens: Tokens, recipe: Recipe, watch: Watcher
) -> tuple[Adapter, Objective]:
    """Calibration, decomposition, directions, loss subspace."""
    spec, space = recipe.adapter, recipe.subspace
    writers = find_writers(lm.model)
    placed = place_writers(
        writers, len(lm.layers), spec.first_layer, spec.last_layer, spec.max_modules
    )
    sample = tokens.train[: spec.activation_pairs]
    with watch.task(f"calibrating on {len(sample)} pairs, decomposing {len(placed)} modules"):
        depth, terms = lm.depth_index(space.depth), parse_subspace(space.expression)
        inputs_of = placed if spec.directions == "activation" else []
        # Only what is looked at: the last layers matter to the suppressed directions alone.
        layers = (
            None if any(t.name == "suppressed" for t in terms) else max(depth, placed[-1].layer + 1)
        )
        states = collect_activations(lm, sample, inputs_of, recipe.training.node_budget, layers)
        kept = {}
        for (
            writer
        ) in placed:  # one at a time: full decompositions of a large model do not fit together
            factors = decompose_writer(writer)
            chosen = choose_directions(
                spec.directions, writer, factors, spec.rank, states, recipe.training.seed
            )
            kept[writer.path] = select_directions(factors, chosen)
        basis = subspaces.build(
            terms,
            space.rank,
            depth,
            space.center,
            recipe.training.seed,
            subspaces.SubspaceInputs(
                states.hidden,
                lambda: lm.model.get_output_embeddings().weight.detach().cpu().float(),
                lambda: (dense_weight(w.module) for w in writers),
            ),
        )
    share = subspaces.captured_share(basis, (states.hidden[0::2] - states.hidden[1::2])[:, depth])
    text = f"loss subspace {space.expression!r}, rank {basis.shape[1]}, captures {share:.0%} of the mean chosen - rejected state"
    (watch.warn if share < 0.25 else watch.note)(text)
    adapter = Adapter.create(kept, spec, recipe.training.seed).to(lm.device)
    basis = basis.to(lm.device).contiguous()
    distributed.broadcast([*adapter.state_dict().values(), basis])
    watch.note(f"adapter: {len(placed)} modules, {adapter.num_parameters():,} parameters")
    return adapter, _objective(lm, basis, recipe)


def _objective(lm: LoadedModel, basis: Tensor, recipe: Recipe) -> Objective:
    spec = recipe.training
    return Objective(
        lm, basis, recipe.losses, recipe.subspace, spec.node_budget, spec.base_cache_mb
    )
