"""What is measured: the fast path and the textbook one at the same work, prepared once.

Each method does one thing once, the same for both ways: a training step, the start of a training,
an evaluation; and the generation of 64 tokens.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from pasto_cli.base import bundled
from pasto_cli.base.format import substitute
from pasto_cli.core.evaluation.benchmarks import load_benchmark, subset
from pasto_cli.core.evaluation.evaluator import tokenise
from pasto_cli.core.evaluation.questions import TokenisedQuestion, score_answers
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import find_writers
from pasto_cli.core.pairs.pairs import make_pairs
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.steering.generation import generate_many
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.prepare import prepare, tokenise_recipe
from perf import shapes
from tests.reference import plain

COEFFICIENTS = (-1.0, 0.0, 1.0)


class Workload:
    """A model, its pairs and an adapter, prepared once for every measurement.

    Args:
        recipe: Path of a recipe.
        changes: Changes to the recipe, `key=value`.
        dilemmas: Number of dilemmas of the evaluation.
        shape: Shape of a larger model, a key of `shapes.SHAPES`: random weights in place of the
            recipe's model.
    """

    def __init__(
        self, recipe: Path, changes: Sequence[str], dilemmas: int, shape: str | None = None
    ) -> None:
        self.recipe = load_recipe(recipe, changes)
        self.watch = progress.Silent()
        self.lm: LoadedModel = dials.open_model(self.recipe.model, self.watch)
        if shape:
            self.lm = shapes.random_weights(shape, self.lm)
        self.tokens = tokenise_recipe(
            make_pairs(self.recipe.pairs), self.recipe, self.lm, self.watch
        )
        self.batch = self.tokens.train[: self.recipe.training.batch_size]
        self.questions = tokenise(
            self.lm, subset(load_benchmark("mini-dilemmas"), "honesty", dilemmas, 0)
        )
        with layer_precision(self.lm, self.recipe.training.precision):
            self.adapter, self.objective = prepare(self.lm, self.tokens, self.recipe, self.watch)
            self.objective.remember(self.batch)
        with torch.no_grad():
            for _, rotation in self.adapter.items():
                rotation.theta.mul_(20)  # a dial that does something

    def writers(self) -> dict[str, plain.PlainWriter]:
        """The adapter in its textbook form."""
        found = {}
        for path, r in self.adapter.items():
            module = self.lm.model.get_submodule(path)
            bias = getattr(module, "bias", None)
            factors = (r.u, r.s, r.v)
            weight = dense_weight(module).to(r.u.device)
            bias = None if bias is None else bias.detach()
            found[path] = plain.PlainWriter(
                weight,
                bias,
                factors,
                r.theta.detach(),
                r.delta.detach(),
                self.adapter.bound,
                self.adapter.max_angle,
            )
        return found

    def fast_step(self) -> None:
        """Loss and gradients of one batch, base side cached as in training."""
        with layer_precision(self.lm, self.recipe.training.precision):
            self.objective(self.adapter, self.batch, neutral=False).total.backward()
        self.adapter.zero_grad()

    def plain_step(self) -> None:
        """The same in three padded passes."""
        layer = self.lm.layers[self.objective.depth - 1]
        basis, spec = self.objective.basis, self.recipe.losses
        writers = self.writers()
        plain.loss(
            self.lm.model, layer, writers, self.batch, basis, spec, self.objective.last_tokens
        ).backward()

    def fast_start(self) -> None:
        """Activations, decompositions, directions, loss subspace, as `pasto train`; no cache."""
        with tempfile.TemporaryDirectory() as empty, cache_at(empty):
            self.warm_start()

    def warm_start(self) -> None:
        """The same on a base that was decomposed before."""
        with layer_precision(self.lm, self.recipe.training.precision):
            prepare(self.lm, self.tokens, self.recipe, self.watch)

    @torch.no_grad()
    def plain_start(self) -> None:
        """Padded rows with all hidden states kept, and every writer decomposed."""
        rows = [
            row
            for p in self.tokens.train[: self.recipe.adapter.activation_pairs]
            for row in (p.chosen, p.rejected)
        ]
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            width = max(map(len, part))
            ids = torch.tensor(
                [[*row] + [0] * (width - len(row)) for row in part], device=self.lm.device
            )
            mask = torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in part], device=self.lm.device
            )
            self.lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        for writer in find_writers(self.lm.model):
            torch.linalg.svd(dense_weight(writer.module), full_matrices=False)

    def fast_evaluation(self, coefficients: Sequence[float] = COEFFICIENTS) -> None:
        """Answers to the dilemmas at three coefficients, rows and coefficients in shared trees."""
        steerer = AdapterSteerer(self.adapter, self.lm)
        score_answers(
            self.lm, steerer, self.questions, coefficients, self.recipe.evaluation.node_budget
        )

    def plain_evaluation(self) -> None:
        """The same numbers: a padded row for every beginning of an answer."""
        self._plain_evaluation([row for question in self.questions for row in _rows(question)])

    def first_token_evaluation(self) -> None:
        """Fewer numbers: a padded row for every question, answers of one token only (as the
        original code reads them).
        """
        self._plain_evaluation([question.ids for question in self.questions])

    @torch.no_grad()
    def _plain_evaluation(self, rows: list[list[int]]) -> None:
        """Padded batches, one coefficient after another, with the logits of every position."""
        writers = self.writers()
        with plain.adapted(self.lm.model, writers):
            for a in COEFFICIENTS:
                for writer in writers.values():
                    writer.coefficient = a
                for start in range(0, len(rows), 16):
                    plain.forward(self.lm.model, self.lm.layers[0], rows[start : start + 16])

    def generation(self, coefficient: float | None, bake: bool = False) -> Callable[[], None]:
        """64 greedy tokens, on the base or at a coefficient."""
        ids = torch.tensor([self.lm.chat.prompt("Tell me about a lake.")], device=self.lm.device)

        sampling: Any = {"do_sample": False, "pad_token_id": 0}
        steered = self.adapter.baked if bake else self.adapter.at

        @torch.no_grad()
        def run() -> None:
            with nullcontext() if coefficient is None else steered(self.lm.model, coefficient):
                self.lm.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=64,
                    max_new_tokens=64,
                    **sampling,
                )

        return run

    def texts(self, trees: bool) -> Callable[[], None]:
        """16 greedy tokens to questions under six personas, on trees or rows of equal length."""
        asked = bundled.lines("questions.txt")[:16]
        whom = [substitute(t, persona="an honest") for t in bundled.lines("templates.txt")[:6]]
        prompts = [f"{cell}\n\n{question}" for cell in whom for question in asked]
        steerer = AdapterSteerer(self.adapter, self.lm)

        def run() -> None:
            self.lm.trees = trees
            generate_many(self.lm, steerer, prompts, [1.0], 16)
            self.lm.trees = True

        return run


@contextmanager
def cache_at(folder: str) -> Iterator[None]:
    """Another cache folder inside this context."""
    before = os.environ.get("PASTO_CACHE")
    os.environ["PASTO_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["PASTO_CACHE"]
        else:
            os.environ["PASTO_CACHE"] = before


def _rows(question: TokenisedQuestion) -> list[list[int]]:
    stems = {way[:-1] for ways in question.answers for way in ways} | {()}
    return [[*question.ids, *stem] for stem in sorted(stems)]
