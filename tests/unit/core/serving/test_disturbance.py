"""KL per token of a finished answer, against plain forward passes of the model itself."""

import asyncio
from contextlib import contextmanager

import pytest
import torch

from pasto_cli.core.serving.disturbance import Measures, kl_per_token
from pasto_cli.core.serving.engine import Message, Refusal, Request, Sampling
from tests.support.variants import FLOAT_MODELS

HELLO = [Message("user", "Hello")]
ANSWER = "Über café: 1 + 1 = 2 \U0001f642!"
POSITION = {"a": 1.0, "b": -0.5}


def plain_kl(engine, ids, n, position):
    """Both distributions from the model's own logits in float32, one token after the other."""
    lm, dials = engine.lm, engine.scheduler.dials

    def log_p(end):
        with torch.no_grad():
            return lm.model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].log_softmax(-1)

    found = []
    for end in range(len(ids) - n, len(ids)):
        base = log_p(end)
        one, other = ((dials[name], c) for name, c in position.items())
        with one[0].at(one[1]), other[0].at(other[1]):
            turned = log_p(end)
        found.append((base.exp() * (base - turned)).sum().item())
    return found


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_every_token_has_the_kl_of_full_logits(serving, name):
    engine = serving(name)
    assert isinstance(engine, Measures)
    found = asyncio.run(engine.disturbance(HELLO, ANSWER, POSITION))
    zero = asyncio.run(engine.disturbance(HELLO, ANSWER, {}))
    engine.close()
    chat = engine.lm.chat
    ids = chat.continued("Hello", ANSWER)
    n = len(ids) - len(chat.prompt("Hello"))
    assert len(found) == n > 10
    assert [told.kl for told in found] == pytest.approx(
        plain_kl(engine, ids, n, POSITION), rel=1e-3, abs=1e-6
    )
    assert max(told.kl for told in found) > 1e-3
    assert all(told.kl == 0.0 for told in zero)
    decoded = engine.lm.tokenizer.decode(ids[-n:], skip_special_tokens=True)
    assert "".join(told.token for told in found) == decoded


def test_answers_that_are_being_written_do_not_notice(serving):
    """The measurement stands between turns: dials are put back where the rows have them."""
    engine = serving()
    request = Request(HELLO, Sampling(max_tokens=40))

    async def text(position):
        return "".join([piece.text async for piece in await engine.stream(request, position)])

    async def measured():
        return [await engine.disturbance(HELLO, ANSWER, {"a": -1.0}) for _ in range(8)]

    async def together():
        return await asyncio.gather(text({"a": 1.0}), measured(), text({"b": 1.0}), text({}))

    alone = [asyncio.run(text(position)) for position in ({"a": 1.0}, {"b": 1.0}, {})]
    one, kl, other, base = asyncio.run(together())
    assert [one, other, base] == alone and len(set(alone)) == 3
    assert all(each == kl[0] for each in kl)


def test_what_cannot_be_measured(serving):
    engine = serving()
    with pytest.raises(Refusal, match="the answer is empty"):
        asyncio.run(engine.disturbance(HELLO, "", POSITION))
    room = engine.lm.model.config.max_position_embeddings
    with pytest.raises(Refusal, match="is too long: the model has 4096 positions"):
        asyncio.run(engine.disturbance(HELLO, "x" * room, POSITION))
    with pytest.raises(Refusal, match="are waiting already"):
        asyncio.run(serving(waiting=0).disturbance(HELLO, "x", POSITION))


def test_numbers_that_overflow_are_said(serving):
    engine = serving()
    engine.close()
    lm = engine.lm

    weight = lm.model.base_model.norm.weight.data
    kept = weight.clone()

    @contextmanager
    def overflown():
        weight.fill_(torch.inf)
        yield
        weight.copy_(kept)

    with pytest.raises(Refusal, match="no finite logits"):
        kl_per_token(lm, [1, 2], [3], overflown)
