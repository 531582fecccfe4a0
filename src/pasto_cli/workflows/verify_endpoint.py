"""`pasto verify --endpoint`: does a served LoRA do something, and is it the right thing?

Engines have answered 200 with the base's text where a LoRA's name or modules did not match
(vllm#34186, #48019, #41754, #55193). The first tokens of some prompts at each position are compared
with pasto's own, and with the server's own base.

    margin      log p(pasto's token) - log p(the server's) under pasto's model, nats
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.engine import Refusal
from pasto_cli.core.serving.targets import Target, find_targets
from pasto_cli.core.serving.upstream import Json, Upstream
from pasto_cli.core.serving.upstream_engine import told_tokens
from pasto_cli.workflows.dials import Dial, LoadOptions, open_dial
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.serve import plain_name

POSITIONS = (-1.0, -0.5, 0.5, 1.0)
TOLERANCE = 0.5
"""Margin, nats, up to which other kernels and precisions explain another token."""
LOOKED_AT = 500
"""Likeliest tokens among which the server's is looked for."""


class First(NamedTuple):
    """A server's first token."""

    text: str
    logprob: float | None
    """None where it tells none."""


class Position(NamedTuple):
    """What was found at one position."""

    name: str
    coefficient: float
    n: int
    """Prompts."""
    equal: int
    """First tokens that are pasto's own."""
    moved: int
    """Prompts where pasto's own token is not the base's, by more than the tolerance."""
    moved_there: int
    """Those of them where the server's token is not what it says as the base."""
    margins: list[float]
    """Of each token that differs."""
    logprob_difference: float | None
    """Largest, of tokens that are equal; None where the server tells none."""
    verdict: str
    """`right`, `base` (the LoRA does nothing) or `wrong`."""


class Served(NamedTuple):
    """What was found at a server."""

    url: str
    base: Position
    positions: list[Position]

    def complaint(self) -> PastoError | None:
        """What is wrong, in one line; None if nothing is."""
        for found in (self.base, *self.positions):
            if found.verdict == "base":
                return PastoError(
                    f"{self.url} answers with the base's text under the name {found.name}: its "
                    f"LoRA does nothing ({found.moved_there} of {found.moved} first tokens moved)",
                    "See the server's log for names or modules that do not match.",
                )
            if found.verdict == "wrong":
                what = "its base" if found is self.base else found.name
                how = f"{found.n - found.equal} of {found.n} first tokens differ"
                if max(found.margins, default=0.0) > TOLERANCE:
                    how = f"{how}, by up to {max(found.margins):.2f} nats"
                else:
                    how = (
                        f"{how}, and log-probabilities of the others by up to "
                        f"{found.logprob_difference:.2g} nats, more than the dial moves them"
                    )
                return PastoError(
                    f"{what} at {self.url} is not this adapter at {found.coefficient:+g}: {how}",
                    "Is it the base that the adapter was made for, and an export of this adapter?",
                )
        return None


def verify_endpoint(
    url: str,
    adapter: str | None,
    watch: Watcher,
    options: LoadOptions,
    *,
    key: str | None = None,
    prompts: int = 20,
    coefficients: Sequence[float] = POSITIONS,
    named: Mapping[str, float] | None = None,
) -> Served:
    """Compare a server's first tokens with pasto's own.

    Args:
        url: Of pasto serve, vLLM, llama-server or another server with /v1/completions.
        adapter: See `open_dial`.
        watch: Told of progress.
        options: How the base is loaded here.
        key: Bearer token that the server wants.
        prompts: Number of prompts.
        coefficients: Positions to ask a pasto server for; others have those that they have.
        named: Model name -> coefficient, where names do not say it.

    Raises:
        PastoError: If the server cannot be asked, or shows no position.
    """
    upstream = Upstream(url, key)
    dial = open_dial(adapter, watch, options, packing=False)
    name = plain_name(dial.recipe.name)
    targets = find_targets(upstream, name, coefficients, named or {})
    texts = bundled.lines("sentiment_prompts.txt")[:prompts]
    rows: list[_Row] = []
    with watch.task(f"asking {upstream.url}", len(texts)) as advance:
        for text in texts:
            ids = dial.lm.chat.prompt(text)
            own = _own(dial, ids, [target.coefficient for target in targets])
            rows.append(_Row(own, [_first(upstream, target, ids) for target in targets]))
            advance(1)
    found = [_judged(dial, target, i, rows) for i, target in enumerate(targets)]
    return Served(upstream.url, found[0], found[1:])


def named(models: Sequence[str]) -> dict[str, float]:
    """`NAME=COEFFICIENT` of each model.

    Raises:
        PastoError: For what is not of this form.
    """
    found = {}
    for text in models:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise PastoError(f"--model {text!r} says no coefficient", "Write --model up=1.")
    return found


class _Row(NamedTuple):
    """One prompt at every target."""

    own: Tensor
    """(targets, v) log-probabilities."""
    there: list[First]


@torch.no_grad()
def _own(dial: Dial, ids: Sequence[int], coefficients: Sequence[float]) -> Tensor:
    """Log-probabilities (c, v) of the token after a prompt, float32, cpu."""
    batch = torch.tensor([list(ids)] * len(coefficients), device=dial.lm.device)
    with dial.steerer.at(list(coefficients)):
        states = dial.lm.trunk(input_ids=batch, use_cache=False).last_hidden_state
        return dial.lm.head(states[:, -1]).float().log_softmax(-1).cpu()


def _first(upstream: Upstream, target: Target, ids: Sequence[int]) -> First:
    body: Json = {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, **target.fields}
    told: Json = {"logprobs": 1, "n_probs": 1}  # OpenAI's word and llama.cpp's
    try:
        reply = upstream.post("/v1/completions", body | told)
    except Refusal as error:
        if error.status != 400 or "logprob" not in error.message:
            raise
        reply = upstream.post("/v1/completions", body)
    if asked := reply.get("nearest_to"):
        raise PastoError(
            f"{upstream.url} has no {asked}: {reply['model']} answered, which is the nearest",
            "Verify positions that it has: --coeff.",
        )
    choice = reply["choices"][0]
    tokens = told_tokens(choice["logprobs"], 1) if choice.get("logprobs") else []
    return First(tokens[0].token, tokens[0].logprob) if tokens else First(choice["text"], None)


def _judged(dial: Dial, target: Target, index: int, rows: Sequence[_Row]) -> Position:
    """Compare one target with pasto's own."""
    margins, differences = [], []
    moved = moved_there = 0
    shift = shift_there = 0.0
    for row in rows:
        own, base, got = row.own[index], row.own[0], row.there[index]
        token, before = int(own.argmax()), int(base.argmax())
        if _same(dial, token, got.text):
            if got.logprob is not None:
                differences.append(abs(got.logprob - float(own[token])))
        else:
            margins.append(_margin(dial, own, got.text))
        if float(own[token] - own[before]) > TOLERANCE:
            moved += 1
            moved_there += got.text != row.there[0].text
        there = row.there[0].logprob
        if got.logprob is not None and there is not None and token == before:
            shift = max(shift, abs(float(own[token] - base[token])))
            shift_there = max(shift_there, abs(got.logprob - there))
    # Where no token moves, log-probabilities still do.
    still = moved_there == 0 if moved else shift_there < shift / 10
    verdict = "base" if still and target.coefficient else "right"
    if verdict == "right" and max(margins, default=0.0) > TOLERANCE:
        verdict = "wrong"
    n = len(rows)
    largest = max(differences) if differences else None
    # No token tells the dial from another one: then its log-probabilities have to.
    if verdict == "right" and target.coefficient and not moved and 0 < shift < (largest or 0.0):
        verdict = "wrong"
    return Position(
        target.name,
        target.coefficient,
        n,
        n - len(margins),
        moved,
        moved_there,
        margins,
        largest,
        verdict,
    )


def _same(dial: Dial, token: int, text: str) -> bool:
    """Whether a server's text is a token; some write it without its space, or an end as nothing."""
    own = dial.lm.tokenizer.decode([token])
    if text == own or (text.strip() and text.strip() == own.strip()):
        return True
    return not text and token in dial.lm.tokenizer.all_special_ids


def _margin(dial: Dial, own: Tensor, text: str) -> float:
    """How far a server's token is behind pasto's, nats; at least that where it is far behind."""
    best = own.topk(min(LOOKED_AT, len(own)))
    for token, logp in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        if _same(dial, token, text):
            return float(best.values[0]) - logp
    return float(best.values[0] - best.values[-1])
