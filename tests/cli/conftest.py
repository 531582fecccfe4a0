"""The `pasto` command as a function, and one finished run that tests copy before they change it."""

import shutil
from collections.abc import Callable

import pytest

from pasto_cli.workflows import evaluate, prepare, report
from tests.support.runs import PROMPTS
from tests.support.terminal import SHORT, TINY, Finished, Said, call, call_in


@pytest.fixture()
def pasto(tmp_path, monkeypatch, capsys) -> Callable[..., Said]:
    """`pasto("train", "recipe.yaml", stdin="...")`, in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object, stdin: str | bytes | None = None) -> Said:
        capsys.readouterr()
        code = call(args, stdin)
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.out + said.err
        return said

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Finished:
    """One finished run of recipes/tiny.yaml, shared by the session: nothing may change it."""
    root = tmp_path_factory.mktemp("trained")
    said = call_in(root, "train", TINY, *SHORT)
    assert said.code in (0, 1), said.err  # 1: on so few pairs the certificate may fail
    return Finished(root, (root / "runs" / "latest").resolve(), said)


@pytest.fixture()
def project(trained, tmp_path) -> Finished:
    """A copy of the finished run, in the folder where `pasto` works, beside a copy of tiny.yaml."""
    shutil.copytree(trained.root / "runs", tmp_path / "runs", symlinks=True)
    shutil.copy(TINY, tmp_path / "tiny.yaml")
    return Finished(tmp_path, tmp_path / "runs" / trained.run.name, trained.said)


@pytest.fixture(scope="module", autouse=True)
def _few_questions():
    """Four neutral prompts show what 24 would, two dilemmas before training what six would, and six
    prompts to choose a report's texts from what 54 would.

    test_processes.py runs the commands with all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "PROBE_PROMPTS", PROMPTS)
        patch.setattr(prepare, "ELICITATION_ITEMS", 2)
        patch.setattr(report, "CANDIDATES", 6)
        yield


@pytest.fixture()
def other(project):
    """A second dial on the same base: the first with its coefficients the other way round and
    weaker."""
    from safetensors.torch import load_file, save_file

    folder = project.root / "runs" / "other"
    shutil.copytree(project.run, folder)
    path = folder / "adapter" / "adapter.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(("theta", "delta")):
            tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path)
    return folder
