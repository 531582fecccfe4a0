"""`pasto push`."""

import pytest
import yaml

from tests.support.terminal import OWN, contents, strict


@pytest.fixture()
def no_upload(monkeypatch):
    from pasto_cli.core.artifact import hub

    def refuse(*_):
        pytest.fail("something was uploaded")

    monkeypatch.setattr(hub, "upload", refuse)


def test_push_dry_run_prints_the_runs_own_facts(pasto, project, no_upload):
    (project.root / "own.yaml").write_text(OWN)
    assert pasto("eval", "-b", "own.yaml", "--value", "candour").code == 0
    before = contents(project.root)
    said = pasto("push", "someone/tiny-dial", "--dry-run")
    assert said.code == 0, said.err
    meta = strict((project.run / "adapter" / "pasto.json").read_text())
    pairs = meta["num_pairs"]
    facts = (
        "`random:llama`",
        "LlamaForCausalLM",
        "rank 16,",
        meta["personas"][0],
        meta["personas"][1],
        meta["created"],
        f"{pairs['train']} training, {pairs['validation']} validation, {pairs['certificate']} "
        f"certificate",
        f"{len(meta['base']['fingerprints'])} modules",
        f"{meta['largest_angle']:.1f} degrees",
        meta["pairs_sha256"][:16],
        f"{meta['training']['steps']} steps, best epoch {meta['training']['best_epoch']}",
        "**passed**" if meta["certificate"]["passed"] else "FAILED",
        f"{meta['certificate']['strength']['1']['value']:+.2f}",
        f"torch {meta['versions']['torch']}",
        "pasto generate --adapter someone/tiny-dial",
        'pasto_cli.load("someone/tiny-dial")',
        "A benchmark of our own",
        "n = 2 rows in 1 dilemmas, 4 control rows",
    )
    for fact in facts:
        assert fact in said.out, fact
    assert "THIS" not in said.out and "nan" not in said.out
    assert "would upload to someone/tiny-dial:" in said.out
    for name in ("adapter.safetensors", "pasto.json", "README.md"):
        assert f"  {name}  " in said.out
    assert contents(project.root) == before


def test_push_dry_run_json(pasto, project, no_upload):
    found = strict(pasto("push", "someone/tiny-dial", "-a", project.run, "--dry-run", "--json").out)
    assert found["repo"] == "someone/tiny-dial" and found["address"] is None
    folder = project.run / "adapter"
    sizes = {name: (folder / name).stat().st_size for name in ("adapter.safetensors", "pasto.json")}
    assert found["files"] == {**sizes, "README.md": len(found["card"].encode())}
    front = found["card"].split("---\n")[1]
    assert yaml.safe_load(front)["library_name"] == "pasto"
