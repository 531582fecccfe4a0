"""The page as a file and its policy, and the facts of a dial from its records."""

import asyncio
import base64
import hashlib
import json
import math
import re

import httpx2 as httpx
import pytest
from starlette.applications import Starlette

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.records.adapter import Calibration, Meta
from pasto_cli.core.serving.dial_facts import facts_of
from pasto_cli.core.serving.page import page_routes
from tests.support.terminal import ROOT, strict


@pytest.fixture(scope="module")
def meta():
    """An adapter's record, with ends."""
    text = (ROOT / "tests/data/format1/adapter/pasto.json").read_text(encoding="utf-8")
    reached = Estimate(value=1.0, low=0.9, high=math.nan, n=24)
    ends = Calibration(
        kl_p95=1.0,
        coefficients={"1": 0.2, "-1": -0.3},
        reached={"1": reached, "-1": reached},
        quantization="none",
    )
    return Meta.model_validate_json(text).model_copy(update={"calibration": ends})


def get(path, facts):
    app = Starlette(routes=page_routes("random:llama", facts, True))

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pasto") as http:
            return await http.get(path)

    return asyncio.run(run())


def test_the_page_runs_its_own_script_only():
    reply = get("/", [])
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    rules = dict(
        rule.split(" ", 1) for rule in reply.headers["content-security-policy"].split("; ")
    )
    for element in ("script", "style"):
        (inside,) = re.findall(f"<{element}[^>]*>(.*?)</{element}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{element}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    assert "unsafe" not in str(rules) and "*" not in str(rules)


def test_the_page_names_no_other_host_and_writes_no_html():
    page = get("/", []).text
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in page
    assert not re.findall(r"<[^>]* (?:on\w+|style)=", page)  # the policy would block them


def test_facts_are_those_of_the_records(meta):
    facts = facts_of("honest", -0.5, meta, raw=False)
    assert facts.ends == {"1": 0.2, "-1": -0.3} and facts.disturbance["1"].n == 24
    assert facts.poles == {"1": "honest", "-1": "dishonest"}
    kept = meta.certificate
    assert facts.certificate.passed is kept.passed
    assert facts.certificate.strength["1"] == kept.strength["1"]
    told = strict(get("/v1/dials", [facts]).text)  # JSON has no NaN
    assert told["base"] == "random:llama" and told["data"][0]["default"] == -0.5
    assert told["data"][0]["disturbance"]["1"]["high"] is None


def test_coefficients_of_training_have_no_certificate(meta):
    facts = facts_of("honest", None, meta, raw=True)
    assert facts.certificate is None and facts.ends is None and facts.disturbance is None


def test_personas_stand_where_a_recipe_has_no_words(meta):
    recipe = json.loads(json.dumps(meta.recipe))
    recipe["pairs"] |= {"words": None, "personas": ["a cheerful", "a gloomy"]}
    facts = facts_of("x", None, meta.model_copy(update={"recipe": recipe}), raw=False)
    assert facts.poles == {"1": "a cheerful", "-1": "a gloomy"}
