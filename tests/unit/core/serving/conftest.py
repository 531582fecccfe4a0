"""An engine with two dials on a tiny model."""

import pytest

from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.transformers_engine import TransformersEngine
from pasto_cli.core.steering.mixing_cache import MixingCache
from pasto_cli.core.steering.steerer import AdapterSteerer


@pytest.fixture()
def serving(tiny, make_adapter):
    """Factory of an engine with the dials a and b on a tiny model; closed at the end."""
    engines = []

    def make(name="llama", **limits):
        lm = tiny(name)
        adapters = {"a": make_adapter(lm), "b": make_adapter(lm, rank=7, seed=5, kind="lora")}
        dials = {n: AdapterSteerer(x, lm, MixingCache(x)) for n, x in adapters.items()}
        engines.append(TransformersEngine(lm, dials, Limits(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
