"""Options and fixtures for all tests. None needs a network or a GPU."""

import os
from pathlib import Path

import pytest

from tests.support import examples  # noqa: F401  (its profile is known before any option is read)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# As the command line does: waiting threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# There is a worker for every core: more threads would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("test_resuming.py", "test_demo_model.py", "test_tune.py")
"""Minutes each; `make test-long` gives a process whole files."""


def pytest_addoption(parser):
    golden, dilemmas = os.environ.get("PASTO_GOLDEN"), os.environ.get("PASTO_DAILYDILEMMAS")
    parser.addoption("--golden", default=golden, help="folder of golden numbers")
    parser.addoption("--dailydilemmas", default=dilemmas, help="folder of the real benchmark")


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that no process waits for another one's at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def given_folder(request, option: str, what: str) -> Path:
    """The folder that an option names. Without it a test is skipped; CI must have it."""
    given = request.config.getoption(option)
    if given and Path(given).is_dir():
        return Path(given).resolve()
    where = f"{given} is no folder" if given else f"give {option} DIR"
    if given or os.environ.get("CI"):
        pytest.fail(f"{what}: {where}")
    pytest.skip(f"{what}: {where}")


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """Folder with the original code's inputs and outputs."""
    return given_folder(request, "--golden", "golden numbers")


@pytest.fixture(scope="session")
def dailydilemmas(request) -> Path:
    """Folder of the real benchmark."""
    return given_folder(request, "--dailydilemmas", "DailyDilemmas")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch, request):
    """Tests that are not on the demo model get a cache of their own."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("PASTO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny():
    """Factory of tiny random models, one of each kind per session, changed only in a context."""
    from pasto_cli.core.models.forward import settle_packing
    from pasto_cli.core.models.loading import load_model
    from pasto_cli.core.recipe.schema import ModelSpec
    from tests.support.variants import MODELS

    made = {}

    def make(name="llama"):
        if name not in made:
            made[name] = load_model(ModelSpec(device="cpu", **MODELS[name]))
            settle_packing(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny_pairs(tiny):
    """Forty tokenised pairs for the byte tokenizer, with short suffixes."""
    from pasto_cli.core.models.chat import tokenise_pairs
    from pasto_cli.core.pairs.pairs import make_pairs
    from pasto_cli.core.recipe.schema import PairsSpec

    spec = PairsSpec(
        words=("honest", "dishonest"),
        templates=("Be {persona} one.", "Play {persona} one."),
        count=40,
    )
    return tokenise_pairs(
        [p.model_copy(update={"neutral": p.neutral[:12]}) for p in make_pairs(spec).pairs],
        tiny().chat,
    )[0]


@pytest.fixture(scope="session")
def make_adapter():
    """Factory of adapters that change what matters, on the middle layers of a tiny model."""
    import torch

    from pasto_cli.core.models.linears import dense_weight
    from pasto_cli.core.models.residual_writers import find_writers, place_writers
    from pasto_cli.core.recipe.schema import AdapterSpec
    from pasto_cli.core.steering.factors import decompose, select_directions
    from pasto_cli.core.steering.kinds import create_adapter

    def make(lm, bound="spectral", rank=12, scale=0.2, seed=0, kind="cayley"):
        writers = place_writers(find_writers(lm.model), len(lm.layers), 0.1, 0.5, 64)
        kept = {
            w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(rank))
            for w in writers
        }
        if kind == "lora":
            adapter = create_adapter(kept, AdapterSpec(kind=kind, rank=rank), seed)
            with torch.no_grad():
                for _, pair in adapter.items():
                    pair.b.mul_(scale / 10 / pair.b.std())
            return adapter
        spec = AdapterSpec(
            rank=rank,
            bound=bound,
            init_theta_std=scale,
            init_delta_mean=0.05,
            init_delta_std=0.02,
        )
        return create_adapter(kept, spec, seed)

    return make


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread for tiny models: more only wait for one another. The demo model gets all."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if "slow" in request.keywords else 1)
    yield
    torch.set_num_threads(before)
