"""`pasto serve --engine vllm | llama.cpp` before servers with their routes, over real HTTP; and
`pasto verify --endpoint`."""

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.serving.app import create_app
from pasto_cli.core.serving.engine import Request, Sampling
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.steerer import NoOpSteerer
from pasto_cli.workflows import serve as workflow
from pasto_cli.workflows.dials import DialSet, LoadOptions, open_set
from pasto_cli.workflows.engine_process import EngineProcess
from pasto_cli.workflows.progress import Silent
from pasto_cli.workflows.upstreams import UpstreamOptions
from perf.processes import save_adapter
from tests.support.fake_upstream import FakeLlamaServer, FakeVllm, running
from tests.support.terminal import TINY, strict

RAW = LoadOptions(verify=False, raw=True)
HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture()
def folders(tiny, make_adapter, tmp_path):
    """Two adapters on disk that nobody trained, of unlike rank."""
    lm, recipe = tiny(), load_recipe(TINY, [])
    adapters = {"up": make_adapter(lm), "meek": make_adapter(lm, rank=7, seed=5)}
    for name, adapter in adapters.items():
        save_adapter(recipe, adapter, lm, tmp_path / name)
    return {name: tmp_path / name for name in adapters}


@pytest.fixture()
def dials(folders):
    """Both dials with their base, as pasto itself turns them."""
    return open_set([str(folder) for folder in folders.values()], Silent(), RAW, packing=False)


@pytest.fixture()
def service(folders):
    """Factory of what `pasto serve up=RUN meek=RUN` opens; closed at the end."""
    opened = []

    def make(names=("up", "meek"), **options):
        sources = [f"{name}={folders[name]}" for name in names]
        behind = UpstreamOptions(**options)
        opened.append(workflow.open_service(sources, Silent(), RAW, Limits(), behind))
        return opened[-1]

    yield make
    for one in opened:
        one.engine.close()


def expected(dials, up=0.0, meek=0.0):
    """The text that `pasto generate` gives."""
    steerer = DialSet(dials.dials, [up, meek]).steerer if up or meek else NoOpSteerer()
    return generate(dials.lm, steerer, "Hello", [1.0], 8)[0]


def ask(service, use):
    """What `use(client)` gives, with OpenAI's client before the application."""

    @asynccontextmanager
    async def client():
        app = create_app(service.engine, service.positions, service.base)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport) as http:
            yield openai.AsyncOpenAI(
                base_url="http://pasto/v1", api_key="-", http_client=http, max_retries=0
            )

    async def run():
        async with client() as openais:
            return await asyncio.wait_for(use(openais), 120)

    return asyncio.run(run())


async def said(client, model, stream=False, **more):
    """(text, the model that answered) of a chat."""
    arguments = {"model": model, "messages": HELLO, **GREEDY, **more}
    if not stream:
        reply = await client.chat.completions.create(**arguments)
        return reply.choices[0].message.content.strip(), reply.model
    chunks = [c async for c in await client.chat.completions.create(stream=True, **arguments)]
    return "".join(c.choices[0].delta.content or "" for c in chunks).strip(), chunks[0].model


@pytest.mark.parametrize("stream", [False, True])
def test_vllm_serves_any_position_exactly(service, dials, stream):
    """A mix of dials is one LoRA, and one that comes for a new position waits for one load."""
    fake = FakeVllm(dials.lm)
    with running(fake.app) as url:
        served = service(engine="vllm", url=url)
        models = ["base", "up@2", "meek@-1", "up@1.5+meek@-1"] + ["up@-2"] * 3
        found = ask(
            served,
            lambda client: asyncio.gather(*(said(client, model, stream) for model in models)),
        )
        served.engine.close()
    wanted = [{}, {"up": 2}, {"meek": -1}, {"up": 1.5, "meek": -1}] + [{"up": -2}] * 3
    texts = [expected(dials, **position) for position in wanted]
    assert found == list(zip(texts, models, strict=True))
    assert len(set(texts)) >= 3
    loads = [name for what, name in fake.calls if what == "load"]
    assert len(loads) == 4 and fake.loras == {}  # what was loaded was unloaded in the end
    assert all(not set(name) & set("+:/@ ") for name in loads)
    assert any(name.startswith("up-plus1.50-meek-minus1.00-") for name in loads)
    assert not any(served.engine.exports.folder.glob("*lora*"))


def test_log_probabilities_and_counts_come_from_vllm(service, dials):
    fake = FakeVllm(dials.lm)
    with running(fake.app) as url:
        served = service(engine="vllm", url=url)

        async def both(client):
            chat = await client.chat.completions.create(
                model="up@2", messages=HELLO, logprobs=True, top_logprobs=2, **GREEDY
            )
            text = await client.completions.create(
                model="up@2", prompt="Hello", logprobs=0, seed=2**40, stop="§", **GREEDY
            )
            return chat, text

        chat, text = ask(served, both)
    tokens = chat.choices[0].logprobs.content
    assert len(tokens) == chat.usage.completion_tokens == 8
    assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob == t.logprob for t in tokens)
    assert text.choices[0].logprobs.tokens and text.choices[0].finish_reason == "length"
    assert text.usage.prompt_tokens == len(dials.lm.chat.encode("Hello"))
    # Whatever a checkpoint's own settings would change is said.
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    assert all(body.items() >= neutral.items() for body in fake.bodies)
    assert fake.bodies[1]["seed"] < 2**31 and fake.bodies[1]["stop"] == ["§"]


def test_the_least_recent_position_is_unloaded_and_none_in_use(service, dials):
    fake = FakeVllm(dials.lm)
    with running(fake.app) as url:
        engine = service(engine="vllm", url=url, loaded=2).engine

        def signs():
            return [(what, name.split("-")[1]) for what, name in fake.calls]

        async def use():
            for c in (1.0, 2.0, 1.0, 3.0):
                await engine.load({"up": c})
            held = await engine.place({"up": 1.0})
            await engine.load({"up": 4.0})
            await engine.load({"up": 5.0})
            held.release()
            return signs()

        found = asyncio.run(use())
    assert found == [
        ("load", "plus1.00"),
        ("load", "plus2.00"),
        ("unload", "plus2.00"),
        ("load", "plus3.00"),
        ("unload", "plus3.00"),
        ("load", "plus4.00"),
        ("unload", "plus4.00"),
        ("load", "plus5.00"),
    ]


def test_a_client_that_goes_away_frees_its_position(service, dials):
    with running(FakeVllm(dials.lm).app) as url:
        engine = service(engine="vllm", url=url).engine

        async def leave():
            request = Request("Hello", Sampling(max_tokens=8))
            pieces = await engine.stream(request, {"up": 1.0})
            await anext(pieces)
            held = engine.running, list(engine.loras.users.values())
            await pieces.aclose()
            await pieces.aclose()
            return held

        assert asyncio.run(leave()) == (1, [1])
    assert engine.running == 0 and list(engine.loras.users.values()) == [0]


def test_a_vllm_that_was_restarted_gets_its_loras_again(service, dials):
    fake = FakeVllm(dials.lm)
    with running(fake.app) as url:
        served = service(engine="vllm", url=url)
        before = ask(served, lambda client: said(client, "up@2"))
        fake.loras.clear()
        assert ask(served, lambda client: said(client, "up@2")) == before


def test_what_vllm_refuses_reaches_the_client(service, dials):
    fake = FakeVllm(dials.lm, rank=1)
    with running(fake.app) as url:
        served = service(engine="vllm", url=url)
        with pytest.raises(openai.APIStatusError, match="larger --max-lora-rank") as caught:
            ask(served, lambda client: said(client, "up@1"))
        assert caught.value.status_code == 502 and served.engine.running == 0
        with pytest.raises(openai.BadRequestError, match="maximum context length is 3000"):
            ask(
                served,
                lambda client: client.completions.create(model="base", prompt=[65] * 3001),
            )
        del fake.app.router.routes[2]  # it no longer knows how to load
        with pytest.raises(openai.APIStatusError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            ask(served, lambda client: said(client, "up@1"))
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match="does not answer") as caught:
            ask(served, lambda client, stream=stream: said(client, "base", stream))
        assert caught.value.status_code == 502
    assert served.engine.running == 0 and not any(served.engine.loras.users.values())


@pytest.fixture()
def files(pasto, folders):
    """GGUF LoRAs of both dials, named as pasto names them."""
    more = ("--format", "gguf-lora", "--raw", "--no-verify")
    found = []
    for name, run in folders.items():
        assert pasto("export", "-a", run, "-c", -1, "-c", 2, *more, "--out", "gguf").code == 0
        for file in sorted(Path("gguf").absolute().glob("gguf-lora-*")):
            target = file.with_name(file.name.replace("gguf-lora", name))
            found.append(file.rename(target))
    return found


def test_llama_cpp_takes_the_nearest_position_and_says_so(service, dials, files):
    fake = FakeLlamaServer(dials.lm, files)
    with running(fake.app) as url:
        served = service(engine="llama.cpp", url=url)

        async def raw(client):
            asked = {"model": "up@1.6+meek@-0.4", "messages": HELLO, **GREEDY}
            return await client.chat.completions.with_raw_response.create(**asked)

        models = ["base", "up@2", "up@-1+meek@2", "up@0.3"]
        found = ask(served, lambda client: asyncio.gather(*(said(client, m, True) for m in models)))
        reply = ask(served, raw)
        with pytest.raises(openai.BadRequestError, match="no dial is called"):
            ask(served, lambda client: said(client, "other@1"))
        strictly = service(engine="llama.cpp", url=url, exact=True)
        with pytest.raises(openai.BadRequestError, match="up@1.6 lies between.*up@-1, up@2"):
            ask(strictly, lambda client: said(client, "up@1.6"))
        assert ask(strictly, lambda client: said(client, "up@2"))[1] == "up@2"
    texts = [expected(dials, **p) for p in ({}, {"up": 2}, {"up": -1, "meek": 2}, {})]
    assert found == list(zip(texts, ["base", "up@2", "up@-1+meek@2", "base"], strict=True))
    assert len(set(texts)) == 3
    assert reply.headers["x-pasto-nearest-to"] == "up@1.6+meek@-0.4"
    body = strict(reply.text)
    assert (body["model"], body["nearest_to"]) == ("up@2", "up@1.6+meek@-0.4")
    assert body["choices"][0]["message"]["content"].strip() == texts[1]
    assert all(len(b["lora"]) == 4 and b["top_k"] == 0 for b in fake.bodies)


def test_a_llama_server_without_the_loras(service, dials, files):
    with running(FakeLlamaServer(dials.lm, files[:2]).app) as url:
        with pytest.raises(PastoError, match="has no LoRA of meek") as caught:
            service(engine="llama.cpp", url=url)
    assert "--lora meek-plus1.00.gguf" in caught.value.hint


def test_one_lora_of_a_linear_dial_is_all_of_it(tiny, make_adapter, tmp_path):
    """M(a) = a M(1): any coefficient, negative ones too, by the scale of one file."""
    from pasto_cli.core.artifact import export
    from pasto_cli.core.serving.engine import Message, Request, Sampling
    from pasto_cli.core.serving.llama_cpp_engine import Grid, LlamaCppEngine
    from pasto_cli.core.serving.upstream import Upstream
    from pasto_cli.core.serving.upstream_engine import ServedBase
    from pasto_cli.core.steering.steerer import AdapterSteerer

    lm = tiny()
    adapter = make_adapter(lm, kind="lora", scale=4.0)
    file = tmp_path / "x-plus1.00.gguf"
    export.save_gguf_lora(file, lm, export.low_rank(adapter, 2.0))
    base = ServedBase(lm.chat, 260, 4096)

    async def text(engine, c):
        request = Request([Message("user", "Hello")], Sampling(max_tokens=8))
        return "".join([p.text async for p in await engine.stream(request, {"x": c})]).strip()

    with running(FakeLlamaServer(lm, [file]).app) as url:
        grid = {"x": Grid({1.0: 0}, raw=lambda c: 2.0 * c)}
        engine = LlamaCppEngine(
            Upstream(url), base, grid, 1, exact=True, limits=Limits(rows=8, waiting=0)
        )
        found = [asyncio.run(text(engine, c)) for c in (-1.0, 0.25, 1.0)]
    steerer = AdapterSteerer(adapter, lm)
    assert found == [generate(lm, steerer, "Hello", [2.0 * c], 8)[0] for c in (-1.0, 0.25, 1.0)]
    assert len(set(found)) > 1


def test_an_endpoint_is_compared_with_pasto_itself(pasto, folders, dials):
    run = folders["up"]
    assert pasto("export", "-a", run, "-c", 2, "--out", "x").code == 0

    def verify(url, *more):
        return pasto("verify", run, "--endpoint", url, "--prompts", 4, *more)

    def load(url, name):
        path = str(Path("x", "lora-plus2.00").absolute())
        httpx.post(url + "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})

    with running(FakeVllm(dials.lm).app) as url:
        nothing = verify(url)
        load(url, "one")
        unnamed, right = verify(url), verify(url, "--model", "one=2")
        wrong = verify(url, "--model", "one=-2")
        load(url, "honest-plus2.00-1f2e3d4c")
        by_name = strict(verify(url, "--json").out)
    assert nothing.code == unnamed.code == 1 and "--model NAME=COEFFICIENT" in unnamed.next_step
    assert right.code == 0 and "one: 4 of 4 first tokens are pasto's" in right.out
    assert wrong.code == 1 and "one at" in wrong.error and "is not this adapter at" in wrong.error
    assert by_name["passed"] and [p["coefficient"] for p in by_name["positions"]] == [0.0, 2.0]
    assert all(p["logprob_difference"] < 1e-4 for p in by_name["positions"])
    twice = verify(url, "--model", "one=2", "-c", 2)
    assert twice.code == 1 and "--coeff" in twice.next_step
    with running(FakeVllm(dials.lm, deaf=True).app) as url:
        load(url, "one")
        deaf = verify(url, "--model", "one=2", "--json")
    assert deaf.code == 1 and strict(deaf.out)["passed"] is False
    assert "answers with the base's text under the name one: its LoRA does nothing" in deaf.error


def test_pasto_and_llama_server_are_endpoints_too(pasto, folders, dials, files, service):
    with running(FakeLlamaServer(dials.lm, files[:2]).app) as url:
        found = strict(
            pasto("verify", folders["up"], "--endpoint", url, "--prompts", 3, "--json").out
        )
        served = service(engine="llama.cpp", url=url, names=("up",))
        app = create_app(served.engine, served.positions, served.base)
        with running(app) as own:
            arguments = ("--endpoint", own, "--prompts", 3)
            through = pasto("verify", folders["up"], *arguments, "-c", 2, "-c", -1)
            between = pasto("verify", folders["up"], *arguments, "-c", 1.2)
    assert found["passed"] and [p["coefficient"] for p in found["positions"]] == [0.0, -1.0, 2.0]
    assert through.code == 0 and "up@2: 3 of 3" in through.out
    assert between.code == 1 and "has no up@1.2: up@2 answered" in between.error


def test_an_engine_that_is_started(tmp_path):
    """Its address when it answers; its own last words when it does not."""
    script = tmp_path / "engine.py"
    script.write_text(
        "import http.server, sys\n"
        "class Health(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "    def log_message(self, *_): pass\n"
        "if sys.argv[1] == 'broken': sys.exit('no such model')\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "http.server.HTTPServer(('127.0.0.1', port), Health).serve_forever()\n"
    )
    command = f"{sys.executable} {script}"
    engine = EngineProcess(command, ["well"], tmp_path / "log", {})
    url = engine.wait(Silent())
    assert httpx.get(url + "/health").is_success
    engine.close()
    assert engine.process.returncode is not None
    engine = EngineProcess(command, ["broken"], tmp_path / "log", {})
    with pytest.raises(PastoError, match="exit code 1:\nno such model"):
        engine.wait(Silent())
    engine.close()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--engine", "tgi"), "'tgi' is not known"),
        (("--upstream", "http://x"), "--upstream means nothing to the engine transformers"),
        (("--engine", "vllm", "--exact"), "every position of vllm is exact"),
        (("--engine", "vllm", "--upstream", "x:1"), "--upstream x:1 is no address"),
        (("--engine", "llama.cpp", "--grid", "a"), "'a' is no list of coefficients"),
        (("--engine", "vllm", "--engine-command", "no-such-vllm"), "no program 'no-such-vllm'"),
        (("--engine", "vllm", "--upstream", "http://127.0.0.1:9"), "does not answer"),
        (("--engine", "llama.cpp", "--engine-command", "true"), "as a GGUF file"),
    ],
)
def test_mistakes(pasto, folders, options, error):
    result = pasto("serve", folders["up"], "--no-verify", *options)
    assert result.code == 1 and error in result.error and result.next_step
