"""The page of `pasto serve` as people use it: in a browser, over a real socket."""

import json
import os
import subprocess
import threading

import pytest
import uvicorn
from starlette.responses import JSONResponse

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.serving.app import create_app
from pasto_cli.core.serving.dial_facts import BenchmarkFacts, CertificateFacts, DialFacts
from pasto_cli.core.serving.positions import Positions
from pasto_cli.core.serving.transformers_engine import TransformersEngine
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.mixing_cache import MixingCache
from pasto_cli.core.steering.steerer import AdapterSteerer, Scaled
from tests.support.browser import Browser, find_browser

pytestmark = pytest.mark.slow
WIDTHS = (1280, 400)
TOKENS = 12
EVIL = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
OVERFLOWS = """[...document.body.querySelectorAll('*')].filter(e => !e.closest('.unseen, dialog')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`)"""
NAMELESS = """[...document.querySelectorAll('button, input, select, textarea')]
  .filter(e => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.labels?.length
    || e.textContent.trim()))
  .map(e => e.outerHTML)"""
ANSWERS = "[...document.querySelectorAll('.turn:last-of-type .text')].map(e => e.textContent)"
DONE = "!running && document.querySelectorAll('.answer').length > 0"


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=25)


FACTS = DialFacts(
    name="a",
    default=None,
    poles={"1": f"a cheerful, joyful {EVIL}", "-1": "a gloomy, miserable"},
    ends={"1": 20.0, "-1": -20.0},
    disturbance={"1": estimate(0.28), "-1": estimate(1.01)},
    certificate=CertificateFacts(
        passed=True, reason="", strength={"1": estimate(0.62), "-1": estimate(-1.02)}
    ),
    benchmarks=[
        BenchmarkFacts(benchmark="sentiment", title="t", slope=estimate(0.39), unit="per unit")
    ],
)


@pytest.fixture(scope="module")
def engine(tiny, make_adapter):
    """Dials that change what a random model says: turned twenty times as far."""
    lm = tiny()
    adapters = {"a": make_adapter(lm), "b": make_adapter(lm, rank=7, seed=5)}

    def dial(adapter: Adapter):
        return Scaled(AdapterSteerer(adapter, lm, MixingCache(adapter)), 20.0, 20.0)

    found = TransformersEngine(lm, {name: dial(each) for name, each in adapters.items()})
    yield found
    found.close()


class Door:
    """An application that asks for a key, where there is one."""

    def __init__(self, app):
        self.app, self.key = app, None

    async def __call__(self, scope, receive, send):
        given = dict(scope["headers"]).get(b"authorization")
        if self.key and scope["path"] != "/" and given != b"Bearer " + self.key:
            refused = JSONResponse({"error": {"message": "no such key"}}, 401)
            return await refused(scope, receive, send)
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def door(engine):
    """The application on both dials."""
    other = FACTS.model_copy(update={"name": "b", "certificate": None, "disturbance": None})
    positions = Positions({"a": None, "b": None})
    return Door(create_app(engine, positions, f"package:x/{EVIL}", dials=[FACTS, other]))


@pytest.fixture(scope="module")
def address(door):
    """A server on loopback, in a thread."""
    server = uvicorn.Server(uvicorn.Config(door, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One for all tests. CI must have one, a user's machine may not."""
    found = find_browser()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: the page cannot be looked at")
        pytest.skip("no Chromium on this machine")
    made = Browser(found, tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture()
def page(browser, address):
    """`page(width)`: the page in a new tab, with its dials on it."""

    def show(width=1280):
        browser.open(f"{address}/", width, 900)
        browser.wait("document.querySelectorAll('.dial').length === 2")
        browser.js(f"document.querySelector('#tokens').value = {TOKENS}")
        return browser

    yield show
    assert not browser.complaints()
    assert all(where.startswith((address, "data:")) for where in browser.addresses())


def send(page, text):
    """Write a message with the keyboard; what is answered."""
    page.js("document.querySelector('#prompt').focus()")
    page.type(text)
    page.press("Enter", 13, "\r")
    page.wait(DONE)
    return page.js(ANSWERS)


def expected(engine, c, prompt="Hello"):
    return generate(engine.lm, engine.scheduler.dials["a"], prompt, [c], TOKENS)[0]


@pytest.mark.parametrize("width", WIDTHS)
def test_three_texts_side_by_side(page, engine, width):
    shown = page(width)
    assert not shown.js(OVERFLOWS)
    texts = [text.strip() for text in send(shown, "Hello")]
    assert texts == [expected(engine, c) for c in (-1.0, 0.0, 1.0)] and len(set(texts)) == 3
    assert not shown.js(OVERFLOWS) and not shown.js(NAMELESS)
    tops = shown.js("[...document.querySelectorAll('.answer')].map(e => e.offsetTop)")
    assert len(set(tops)) == (1 if width == 1280 else 3)
    heads = shown.js("[...document.querySelectorAll('.answer h3 b')].map(e => e.textContent)")
    assert heads == ["\u22121", "0", "+1"]


def test_the_slider_is_turned_by_the_keyboard(page, engine):
    shown = page()
    texts = {}
    for key, code, c in (("Home", 36, -1.0), ("End", 35, 1.0)):
        shown.js("document.querySelector('input[type=range]').focus()")
        shown.press(key, code)
        assert shown.js("document.querySelector('.dial output').textContent")[1:] == "1"
        assert shown.js("mode()") == "one"
        (text,) = send(shown, "Hello")
        texts[c] = text.strip()
        shown.js("document.querySelector('#new').click()")
    assert texts == {c: expected(engine, c) for c in texts}
    assert len({*texts.values(), expected(engine, 0.0)}) == 3
    shown.js("document.querySelector('.steps button:nth-child(2)').click()")
    assert shown.js("lanes()") == [{"a": 0, "b": 0}]


def test_every_position_goes_on_from_its_own_answers(page):
    shown = page()
    first = send(shown, "Hello")
    send(shown, "And you?")
    asked = shown.js("turns[1].answers.map(answer => answer.body.messages.map(m => m.content))")
    assert asked == [["Hello", text, "And you?"] for text in first]


def test_tokens_are_shaded_by_their_kl(page):
    shown = page()
    send(shown, "Hello")
    shades = shown.js(
        "[...document.querySelectorAll('.answer')].map(answer => "
        "[...answer.querySelectorAll('.text span')].map(span => [span.textContent, span.title, "
        "getComputedStyle(span).backgroundColor]))"
    )
    assert not shades[1]  # the base
    for each in (shades[0], shades[2]):
        values = [float(title.split()[0]) for _, title, _ in each]
        assert len(values) >= TOKENS and max(values) > 0.1
        order = sorted(range(len(values)), key=lambda i: values[i])
        assert each[order[0]][2] != each[order[-1]][2]
    # The arrow keys read one token after the other.
    figure = "document.querySelector('.answer footer span').textContent"
    assert "p95" in shown.js(figure)
    shown.js("document.querySelector('.answer .text').focus()")
    shown.press("ArrowRight", 39)
    assert shown.js(figure).endswith(f"KL {shades[0][0][1].split()[0]}")
    shown.js("document.querySelector('#shade').click()")
    shown.js("document.querySelector('.answer .text').blur()")
    bare = "getComputedStyle(document.querySelector('.text span:nth-child(2)')).backgroundColor"
    assert shown.js(bare) == "rgba(0, 0, 0, 0)"


def test_what_is_copied_gives_the_same_answer(page, address):
    shown = page()
    shown.call(
        "Browser.grantPermissions",
        origin=address,
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
    )
    prompt = 'It\'s "so" 100% \\ $HOME `x` \u00e9\U0001f642'
    texts = send(shown, prompt)
    copied = {}
    for number, name in enumerate(("curl", "Python")):
        shown.js(f"document.querySelectorAll('.answer footer button')[{number}].click()")
        shown.wait(
            f"document.querySelectorAll('.answer footer button')[{number}].textContent === 'copied'"
        )
        copied[name] = shown.js("navigator.clipboard.readText()")
    said = []
    exec(copied["Python"], {"print": said.append})
    assert said == [texts[0]]
    done = subprocess.run(["sh", "-c", copied["curl"]], capture_output=True, text=True)
    if done.returncode != 127:  # no curl on this machine
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == texts[0]


def test_foreign_text_stays_text(page):
    shown = page()
    send(shown, EVIL)
    shown.js("new Promise(done => setTimeout(done, 50))")
    assert shown.js("document.title") == "a, b - pasto"
    assert shown.js("document.querySelector('.turn h2').textContent") == EVIL
    assert not shown.js("document.querySelectorAll('img').length")
    assert EVIL in shown.js("document.querySelector('.poles').textContent")
    assert shown.js("document.querySelector('#base').title") == f"package:x/{EVIL}"
    # Even what gets in as HTML cannot run: the page's policy has the hash of its own script only.
    shown.js(
        "document.body.insertAdjacentHTML('beforeend', '<b onclick=\"document.title=2\">x</b>');"
        "document.body.lastChild.click()"
    )
    assert shown.js("document.title") == "a, b - pasto"
    shown.events.clear()  # the policy said so


def test_the_facts_of_a_dial_stand_beside_its_slider(page):
    text = page().js("document.querySelector('.dial').innerText")
    for part in (
        "Certificate passed",
        "\u22121.02",
        "[\u22121.12, \u22120.92]",
        "+0.62",
        "n\u00a0=\u00a025",
    ):
        assert part in text, part
    for part in ("1.01", "sentiment", "+0.39"):
        assert part in text, part


def test_errors_are_said_and_an_answer_is_stopped(page):
    shown = page()
    shown.js("document.querySelector('#temperature').value = 9")
    send(shown, "Hello")
    problems = shown.js("[...document.querySelectorAll('.problem')].map(e => e.textContent)")
    assert len(problems) == 3 and "temperature" in problems[0]
    shown.js("document.querySelector('#temperature').value = 0")
    shown.js("document.querySelector('#tokens').value = 3000")
    shown.js("document.querySelector('#prompt').value = 'Hello'")
    shown.js("document.querySelector('#composer').requestSubmit()")
    shown.wait("turns[1]?.answers.every(answer => answer.text)")
    shown.js("document.querySelector('#stop').click()")
    shown.wait(DONE)
    told = shown.js("[...document.querySelectorAll('.answer footer span')].at(-1).textContent")
    assert told == "stopped"
    shown.events.clear()  # the browser logs replies of 400 as errors


def test_a_server_that_asks_for_a_key(browser, address, door, monkeypatch):
    monkeypatch.setattr(door, "key", b"open sesame")
    browser.open(f"{address}/")
    browser.wait("!document.querySelector('#key').hidden")
    browser.wait("document.querySelector('#lead').textContent === 'no such key'")
    browser.js("document.querySelector('#secret').focus()")
    browser.type("open sesame")
    browser.press("Enter", 13, "\r")
    browser.wait("document.querySelectorAll('.dial').length === 2")
    browser.wait("document.querySelector('#key').hidden")
    assert browser.js("asPython({})").count("PASTO_API_KEY") == 1
    assert "open sesame" not in browser.js("asCurl({}) + asPython({})")
