"""The transformers engine: a text does not depend on its neighbours, and equals `generate`."""

import asyncio
import random
import threading

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.engine import Message, Refusal, Request, Sampling
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.mixing_cache import MixingCache
from pasto_cli.core.steering.steerer import AdapterSteerer, Mix, NoOpSteerer
from tests.support.variants import FLOAT_MODELS

PROMPTS = ["Hi", "Describe a street in a small town, please.", "Why?", "x" * 41, "y" * 41]
POSITIONS = [{}, {"a": 1.0}, {"a": -2.0}, {"b": 1.5}, {"a": 0.5, "b": -1.0}, {"a": -1.0, "b": 1.0}]
POSITIONS += [{"a": 0.0}]


def chat(text, **sampling):
    return Request([Message("user", text)], Sampling(**sampling))


async def whole(engine, request, position):
    """(text, last piece) of an answer."""
    pieces = [piece async for piece in await engine.stream(request, position)]
    assert [p.finish for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    return "".join(p.text for p in pieces), pieces[-1]


def alone(engine, prompt, position, tokens, **more):
    """The text that `generate` gives: each dial by a steerer without a cache."""
    plain = {n: AdapterSteerer(s.adapter, s.lm) for n, s in engine.scheduler.dials.items()}
    mix = Mix([(plain[name], c) for name, c in position.items()])
    steerer = mix if any(position.values()) else NoOpSteerer()
    return generate(engine.lm, steerer, prompt, [1.0], tokens, **more)[0]


def hooks(engine):
    return [list(module._forward_hooks) for module in engine.lm.model.modules()]


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_greedy_texts_equal_generate_whatever_else_is_in_the_batch(serving, name):
    """Prompts and answers of unlike length, coming at different times, at other positions each."""
    engine = serving(name, rows=5)
    # transformers leaves hooks of its own on a model that was once asked for its hidden states
    before = hooks(engine)
    rng = random.Random(0)
    jobs = [
        (rng.choice(PROMPTS), position, rng.randint(1, 40)) for position in POSITIONS for _ in "12"
    ]

    async def late(n, job):
        await asyncio.sleep(0.02 * n)
        prompt, position, tokens = job
        return (await whole(engine, chat(prompt, max_tokens=tokens), position))[0].strip()

    async def all_of_them():
        return await asyncio.gather(*(late(n, job) for n, job in enumerate(jobs)))

    found = asyncio.run(all_of_them())
    engine.close()
    expected = [alone(engine, prompt, position, n) for prompt, position, n in jobs]
    assert found == expected
    assert len(set(expected)) > len(jobs) // 2  # the positions do something
    assert not engine.scheduler.rows and engine.scheduler.batch.cache is None
    assert hooks(engine) == before


def test_sampled_texts_equal_generate_and_do_not_depend_on_neighbours(serving):
    engine = serving()
    jobs = [(PROMPTS[i % 4], POSITIONS[i], i) for i in range(6)]

    async def together():
        return await asyncio.gather(
            *(
                whole(engine, chat(p, max_tokens=12, temperature=0.8, seed=seed), c)
                for p, c, seed in jobs
            )
        )

    found = [text.strip() for text, _ in asyncio.run(together())]
    engine.close()
    assert found == [alone(engine, p, c, 12, temperature=0.8, seed=seed) for p, c, seed in jobs]


def test_seeds(serving):
    engine = serving()

    def text(seed):
        request = chat("Hi", max_tokens=16, temperature=1.0, top_p=0.9, seed=seed)
        return asyncio.run(whole(engine, request, {"a": 1.0}))[0]

    assert text(3) == text(3) == text(3 + 2**63)
    assert len({text(seed) for seed in (1, 2, 3)}) == 3
    assert len({text(None) for _ in range(3)}) == 3


def test_stop_max_tokens_and_counts(serving):
    engine = serving()
    full, last = asyncio.run(whole(engine, chat("Hi", max_tokens=30), {"a": 1.0}))
    assert last.finish == "length" and last.completion_tokens == 30
    stop = full[11:14]
    cut, last = asyncio.run(whole(engine, chat("Hi", max_tokens=30, stop=[stop, "§§"]), {"a": 1.0}))
    assert cut == full[: full.index(stop)] and last.finish == "stop"
    assert 0 < last.completion_tokens < 30


def test_a_text_ends_with_the_end_token(serving, monkeypatch):
    engine = serving()
    request = chat("Hi", max_tokens=20, logprobs=0)
    first = asyncio.run(whole(engine, request, {}))[0]
    ids = engine.lm.tokenizer(first)["input_ids"]
    engine.scheduler.ends = {257, ids[6]}
    text, last = asyncio.run(whole(engine, request, {}))
    assert last.finish == "stop" and first.startswith(text)
    assert last.completion_tokens == ids.index(ids[6]) + 1


def test_logprobs_are_those_of_one_forward(serving):
    engine = serving()
    lm = engine.lm

    async def ask():
        request = chat("Hi", max_tokens=9, temperature=0.7, seed=1, logprobs=3)
        others = [whole(engine, chat(p, max_tokens=20), {"b": 1.0}) for p in PROMPTS]
        pieces = [p async for p in await engine.stream(request, {"a": -1.0})]
        await asyncio.gather(*others)
        return pieces

    pieces = asyncio.run(ask())
    told = [token for piece in pieces for token in piece.tokens]
    assert len(told) == 9
    engine.close()
    prompt = lm.chat.prompt("Hi")
    # The byte tokenizer writes bytes beyond ASCII as one character each, so tokens are known.
    generator = torch.Generator().manual_seed(1)
    row = list(prompt)
    with torch.no_grad(), engine.scheduler.dials["a"].at(-1.0):
        for token in told:
            logits = lm.model(input_ids=torch.tensor([row])).logits[0, -1]
            logp = logits.log_softmax(-1)
            chosen = int(torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator))
            assert token.token == lm.tokenizer.decode([chosen])
            assert token.logprob == pytest.approx(float(logp[chosen]), abs=1e-4)
            assert [v for _, v in token.top] == pytest.approx(
                logp.topk(3).values.tolist(), abs=1e-4
            )
            row.append(chosen)


def test_nobody_waits_for_the_longest_answer(serving):
    """Two rows; a third joins when the short one ends, and all end before the long one does."""
    engine = serving(rows=2)
    order = []

    async def run(name, prompt, tokens):
        await whole(engine, chat(prompt, max_tokens=tokens), {"a": 1.0})
        order.append(name)

    async def race():
        await asyncio.gather(
            run("long", PROMPTS[1], 120), run("short", "Hi", 3), run("third", "Why?", 3)
        )

    asyncio.run(race())
    assert order == ["short", "third", "long"]


def test_an_answer_that_is_closed_frees_its_row(serving):
    engine = serving(rows=1)

    async def leave():
        pieces = await engine.stream(chat("Hi", max_tokens=4000), {"a": 1.0})
        await anext(pieces)
        (row,) = engine.scheduler.rows
        waiting = await engine.stream(chat("Hi", max_tokens=4000), {})
        await waiting.aclose()  # one that has no row yet
        await pieces.aclose()
        text, last = await whole(engine, chat("Why?", max_tokens=5), {"b": 1.0})
        assert not row.ended and row.made < 4000  # it was not written to its end first
        return text, last

    text, last = asyncio.run(asyncio.wait_for(leave(), 60))
    assert last.finish == "length"
    engine.close()
    assert not engine.scheduler.busy
    assert text.strip() == alone(engine, "Why?", {"b": 1.0}, 5)


def test_mixing_is_computed_once_per_coefficient(serving, monkeypatch):
    engine = serving()
    adapter, asked = engine.scheduler.dials["a"].adapter, []
    real = adapter.mixing
    monkeypatch.setattr(adapter, "mixing", lambda cs: asked.extend(cs) or real(cs))

    async def ask():
        await engine.load({"a": 0.25})
        for _ in range(2):
            jobs = [
                whole(engine, chat(p, max_tokens=6), {"a": c})
                for p in PROMPTS
                for c in (0.25, -1.0)
            ]
            await asyncio.gather(*jobs)

    asyncio.run(ask())
    assert asked.count(0.25) == asked.count(-1.0) == 1
    with pytest.raises(KeyError):
        asyncio.run(engine.load({"c": 1.0}))


def test_mixing_cache_forgets_the_least_recent(tiny, make_adapter):
    adapter = make_adapter(tiny())
    cache = MixingCache(adapter, limit=2)
    for wanted in ([1.0, 2.0, 3.0], [0.0, 3.0], [-1.0]):
        for got, expected in zip(cache(wanted), adapter.mixing(wanted), strict=True):
            torch.testing.assert_close(got, expected.detach(), rtol=1e-6, atol=1e-6)
    assert list(cache._kept) == [3.0, -1.0]


def test_refusals(serving):
    engine = serving(waiting=0)
    chatter = engine.lm.chat

    async def refused(request):
        with pytest.raises(Refusal) as found:
            await engine.stream(request, {})
        return found.value

    full = asyncio.run(refused(chat("Hi")))
    assert full.status == 429 and full.code == "overloaded"
    long = asyncio.run(refused(Request("x" * 4090, Sampling(max_tokens=10))))
    assert long.status == 400 and "4096" in long.message
    assert "vocabulary" in asyncio.run(refused(Request([1, 260], Sampling()))).message
    assert "empty" in asyncio.run(refused(Request("", Sampling()))).message
    before = chatter.tokenizer.chat_template
    chatter.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        assert "roles must alternate" in asyncio.run(refused(chat("Hi"))).message
    finally:
        chatter.tokenizer.chat_template = before
    engine.close()
    assert asyncio.run(refused(chat("Hi"))).status in (429, 503)


def test_an_error_while_decoding_reaches_the_client_and_the_engine_goes_on(serving, monkeypatch):
    engine = serving()
    failing = engine.scheduler.batch

    def step(tokens):
        raise MemoryError("on purpose")

    monkeypatch.setattr(failing, "step", step)
    with pytest.raises(MemoryError):
        asyncio.run(whole(engine, chat("Hi", max_tokens=5), {}))
    assert engine.scheduler.batch is not failing
    text, _ = asyncio.run(whole(engine, chat("Hi", max_tokens=5), {}))
    engine.close()
    assert text.strip() == alone(engine, "Hi", {}, 5)


def test_a_row_that_overflows_does_not_harm_its_neighbours(serving):
    engine = serving()

    async def ask():
        jobs = [
            whole(engine, chat("Hi", max_tokens=9, temperature=t), {"b": c})
            for t in (0.0, 1.0)
            for c in (1e39, -1.0)  # the first is infinite in float32
        ]
        return await asyncio.gather(*jobs, return_exceptions=True)

    bad, good, worse, sampled = asyncio.run(ask())
    engine.close()
    assert isinstance(bad, Refusal) and isinstance(worse, Refusal) and bad.code == "not_finite"
    assert good[0].strip() == alone(engine, "Hi", {"b": -1.0}, 9)
    assert sampled[1].completion_tokens == 9


def test_hardly_any_temperature_is_greedy(serving):
    engine = serving()
    request = chat("Hi", max_tokens=9, temperature=1e-300)
    text, _ = asyncio.run(whole(engine, request, {"a": 1.0}))
    engine.close()
    assert text.strip() == alone(engine, "Hi", {"a": 1.0}, 9)


def test_closing_ends_what_runs(serving):
    engine = serving()

    async def ask():
        pieces = await engine.stream(chat("Hi", max_tokens=4000), {})
        await anext(pieces)
        threading.Thread(target=engine.close).start()
        with pytest.raises(Refusal, match="stopping"):
            while True:
                await anext(pieces)
        with pytest.raises(Refusal, match="stopping"):
            await engine.stream(chat("Hi"), {})

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_a_model_with_another_state_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    from pasto_cli.core.serving.kv_batch import KVBatch

    class Loaded:
        model = MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=20))
        device = torch.device("cpu")

    with pytest.raises(PastoError, match="more than keys and values"):
        KVBatch(Loaded())
