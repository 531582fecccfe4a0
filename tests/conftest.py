"""Options and fixtures for all tests. None needs a network or a GPU."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(ROOT.parent / "shared" / "golden"), help="folder of golden numbers")


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """Folder with the original code's inputs and outputs; CI must have it, a user's clone may not."""
    folder = Path(request.config.getoption("--golden"))
    if not (folder / "tensors.safetensors").exists():
        if os.environ.get("CI"):
            pytest.fail(f"golden numbers are missing: {folder}")
        pytest.skip(f"no golden numbers at {folder} (give --golden DIR)")
    return folder


@pytest.fixture(scope="session")
def dailydilemmas() -> Path:
    """The real benchmark, where it lies beside the project."""
    folder = ROOT.parent / "shared" / "data" / "dailydilemmas"
    if not folder.exists():
        if os.environ.get("CI"):
            pytest.fail(f"the benchmark is missing: {folder}")
        pytest.skip(f"no benchmark at {folder}")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch, request):
    """Tests that are not on the demo model get a cache of their own."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("PASTO_CACHE", str(tmp_path_factory.mktemp("cache")))
