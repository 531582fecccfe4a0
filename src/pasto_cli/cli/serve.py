"""`pasto serve`: a dial in every request."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.cli import options


def serve(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADAPTER",
            help="RUN, NAME=RUN or NAME=RUN:COEFFICIENT of each, all of one base. Default: the "
            "latest run.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", "-a", help="The same as an option; repeatable.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    rows: Annotated[int, typer.Option(min=1, help="Most answers that decode together.")] = 16,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer where a request says nothing.")
    ] = 512,
    engine: Annotated[
        str,
        typer.Option(help="What decodes: transformers (in this process), vllm or llama.cpp."),
    ] = "transformers",
    upstream: Annotated[
        str | None,
        typer.Option(
            help="Address of a vLLM or llama-server that runs already. Without it one is started.",
            show_default=False,
        ),
    ] = None,
    upstream_key: Annotated[
        str | None,
        typer.Option(
            envvar="PASTO_UPSTREAM_KEY", help="The key that it wants.", show_default=False
        ),
    ] = None,
    engine_command: Annotated[
        str | None,
        typer.Option(
            help='How it is started: "vllm serve --tensor-parallel-size 2", "llama-server -m '
            'BASE.gguf". Default: vllm or llama-server on PATH.',
            show_default=False,
        ),
    ] = None,
    lora_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for exported positions, which the engine sees under the same path. "
            "Default: a temporary one.",
            show_default=False,
        ),
    ] = None,
    loaded: Annotated[int, typer.Option(min=1, help="Most positions that vLLM keeps.")] = 32,
    grid: Annotated[
        str, typer.Option(help="Positions of each dial that llama.cpp is started with.")
    ] = "-1,-0.5,0.5,1",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="llama.cpp: refuse what lies between positions; else the nearest one."
        ),
    ] = False,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    raw: options.Raw = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the address as one line of JSON to stdout.")
    ] = False,
) -> None:
    """Serve dials over HTTP as OpenAI's API does; the model's name turns them.

    Requests at different coefficients share batches. Ctrl-C ends it.

    Examples:
      pasto serve

      pasto serve honest=runs/honest cheerful=runs/cheerful --port 8080

      pasto serve honest=runs/honest --engine vllm --upstream http://localhost:8100

      curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d
      '{"model": "quickstart@-0.5", "messages": [{"role": "user", "content": "Hello."}]}'
    """
    from pasto_cli.workflows import serve as workflow

    workflow.require_server()
    from pasto_cli.cli.console import Screen, print_line
    from pasto_cli.core.serving.transformers_engine import Limits

    behind = workflow.upstream_options(
        engine,
        url=upstream,
        key=upstream_key,
        command=engine_command,
        exact=exact,
        grid=grid,
        loaded=loaded,
        lora_dir=lora_dir,
    )
    screen = Screen()
    if not workflow.is_loopback(host):
        screen.warn(f"whoever reaches {host} can use this model: requests need no key")
    service = workflow.open_service(
        [*(adapters or ()), *(adapter or ())],
        screen,
        options.load_options(quantization, device, no_verify, raw),
        Limits(rows=rows, max_tokens=max_tokens),
        behind,
    )
    names = list(service.engine.models())

    def ready(address: str) -> None:
        if json:
            print_line(json_format.dumps({"address": address, "models": names}))
        screen.note(f"serving {', '.join(names)} at {address}/v1 (Ctrl-C ends it)")

    workflow.serve(service, host, port, ready)
    screen.note("stopped")
