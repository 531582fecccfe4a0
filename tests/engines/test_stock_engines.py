"""Stock engines with real exports of a real dial: are their first tokens transformers' own?

`make test-engines`. PASTO_VLLM names the command of a vLLM, PASTO_LLAMA_SERVER that of a
llama-server; without them there is nothing to test. PASTO_ENGINES_RUN is a dial that is there
already; without it one is trained for some steps.
"""

import asyncio
import os
import time

import pytest
import torch

from pasto_cli.base import bundled
from pasto_cli.core.models.gguf import file_in_package
from pasto_cli.core.serving.engine import Message, Request, Sampling
from pasto_cli.core.serving.limits import Limits
from pasto_cli.workflows import serve as workflow
from pasto_cli.workflows.dials import LoadOptions, open_dial
from pasto_cli.workflows.progress import Silent
from pasto_cli.workflows.upstreams import UpstreamOptions
from pasto_cli.workflows.verify_endpoint import POSITIONS, verify_endpoint
from tests.support.gguf_files import in_float32
from tests.support.terminal import ROOT, call_in

pytestmark = pytest.mark.slow
VLLM, LLAMA_SERVER = os.environ.get("PASTO_VLLM"), os.environ.get("PASTO_LLAMA_SERVER")
SHORT = ("pairs.count=40", "training.epochs=1", "training.validate_every=1")
PROMPTS, TOKENS = 20, 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A dial of the demo model."""
    if given := os.environ.get("PASTO_ENGINES_RUN"):
        return given
    folder = tmp_path_factory.mktemp("dial")
    changes = [word for change in SHORT for word in ("--set", change)]
    recipe = ROOT / "recipes" / "quickstart.yaml"
    said = call_in(folder, "train", recipe, *changes, own_cache=False)
    assert said.code in (0, 1), said.err  # 1: after so few steps the certificate may fail
    return str(folder / "runs" / "latest")


def opened(run, options):
    """The service that `pasto serve` would listen with, and the seconds until it was there."""
    started = time.perf_counter()
    service = workflow.open_service(
        [f"mood={run}"], Silent(), LoadOptions(), Limits(rows=8), options
    )
    return service, time.perf_counter() - started


async def text(engine, prompt, position):
    """A greedy answer through pasto's engine."""
    request = Request([Message("user", prompt)], Sampling(max_tokens=TOKENS))
    pieces = await engine.stream(request, position)
    return "".join([piece.text async for piece in pieces]).strip()


def compare(name, run, service, needs_load):
    """First tokens at every position, some longer texts, and what a new position costs."""
    engine = service.engine
    loads = {}
    for c in POSITIONS if needs_load else ():
        started = time.perf_counter()
        asyncio.run(engine.load({"mood": c}))
        loads[c] = time.perf_counter() - started
    found = verify_endpoint(engine.upstream.url, run, Silent(), LoadOptions(), prompts=PROMPTS)
    for one in (found.base, *found.positions):
        print(
            f"{name} {one.coefficient:+.1f}: {one.equal} of {one.n} first tokens equal, the others "
            f"{[round(m, 4) for m in one.margins]} nats behind; {one.moved_there} of {one.moved} "
            f"moved from the base; log-probabilities within {one.logprob_difference}"
        )
    for c, seconds in loads.items():
        print(f"{name} export and load of {c:+.1f}: {1000 * seconds:.0f} ms")
    assert found.complaint() is None
    assert {one.coefficient for one in found.positions} == set(POSITIONS)
    assert sum(one.moved_there for one in found.positions) > 0
    dial = open_dial(run, Silent(), packing=False)
    equal = 0
    jobs = [(p, c) for p in bundled.lines("sentiment_prompts.txt")[:3] for c in (-1.0, 0.0, 1.0)]
    for prompt, c in jobs:
        position = {"mood": c} if c else {}
        with torch.no_grad():
            own = next(iter(dial.generate(prompt, [c], TOKENS)))[1]
        equal += asyncio.run(text(engine, prompt, position)) == own
    print(f"{name}: {equal} of {len(jobs)} texts of {TOKENS} tokens equal pasto generate's")
    assert equal >= len(jobs) - 2  # near ties fall either way


def show_speed(engine):
    """Eight answers at once, at eight positions that are loaded, against eight of the base."""
    eight = [{"mood": c} for c in (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0)]
    prompts = bundled.lines("sentiment_prompts.txt")[:8]

    async def together(positions):
        await asyncio.gather(*(text(engine, p, c) for p, c in zip(prompts, positions, strict=True)))

    seconds = {}
    for name, positions in (("positions", eight), ("base", [{}] * 8)):
        asyncio.run(together(positions))
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            asyncio.run(together(positions))
            taken.append(time.perf_counter() - started)
        seconds[name] = sorted(taken)[1]
    print(
        f"vLLM, 8 x {TOKENS} tokens at once: base {seconds['base']:.2f} s, eight positions "
        f"{seconds['positions']:.2f} s, {seconds['base'] / seconds['positions']:.2f} of its tokens "
        f"per second"
    )


@pytest.mark.skipif(not VLLM, reason="PASTO_VLLM names no vLLM")
def test_vllm(run):
    command = f"{VLLM} serve --enforce-eager --max-model-len 512"
    service, seconds = opened(run, UpstreamOptions("vllm", command=command))
    try:
        print(f"vLLM: ready after {seconds:.0f} s")
        compare("vLLM", run, service, needs_load=True)
        show_speed(service.engine)
    finally:
        service.engine.close()


@pytest.mark.skipif(not LLAMA_SERVER, reason="PASTO_LLAMA_SERVER names no llama-server")
def test_llama_cpp(run, tmp_path):
    """In float32: llama.cpp rounds activations to 8 bits where weights have 4."""
    file = tmp_path / "base.gguf"
    source = open_dial(run, Silent(), LoadOptions(weights=False)).meta.base.spec.source
    in_float32(file_in_package(source.removeprefix("package:")), file)
    options = UpstreamOptions("llama.cpp", command=f"{LLAMA_SERVER} -m {file}")
    service, seconds = opened(run, options)
    try:
        print(f"llama.cpp: ready after {seconds:.1f} s, four positions exported and loaded")
        compare("llama.cpp", run, service, needs_load=False)
    finally:
        service.engine.close()
