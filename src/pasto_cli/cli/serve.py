"""`pasto serve`: a dial in every request."""

import json as json_format
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pasto_cli.cli import options


def serve(
    adapters: options.Served = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", "-a", help="The same as an option; repeatable.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    rows: Annotated[
        int, typer.Option(min=1, callback=options.count, help="Most answers that decode together.")
    ] = 16,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, callback=options.count, help="Longest answer where a request says nothing."
        ),
    ] = 512,
    max_output_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="Longest answer that a request may ask for. Default: the model's context.",
            show_default=False,
        ),
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="Longest prompt. Default: the model's context.",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[
        int,
        typer.Option(
            min=0,
            callback=options.count,
            help="Most answers that wait; more are refused with a 429.",
        ),
    ] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Seconds that a request may take.")
    ] = 600,
    grace: Annotated[
        int,
        typer.Option(
            min=0,
            callback=options.count,
            help="Seconds that answers have to end after SIGTERM or Ctrl-C.",
        ),
    ] = 5,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PASTO_API_KEY",
            help="Answer only requests that send this key. Other users of this machine see the "
            "options of a command, but not its environment.",
            show_default=False,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer web pages of this origin too, such as https://example.org; repeatable, "
            "* for all.",
            show_default=False,
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into the access log (stderr).")
    ] = False,
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
            callback=options.expand,
            help="Folder for exported positions, which the engine sees under the same path. "
            "Default: a temporary one.",
            show_default=False,
        ),
    ] = None,
    loaded: Annotated[
        int, typer.Option(min=1, callback=options.count, help="Most positions that vLLM keeps.")
    ] = 32,
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

    Requests at different coefficients share batches. Ctrl-C ends it. A line of JSON on stderr tells
    of every request; /metrics has figures for Prometheus.

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
    from pasto_cli.core.serving.access import Access, is_loopback
    from pasto_cli.core.serving.app import Rules
    from pasto_cli.core.serving.limits import Limits

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
    access = Access(api_key, allow_origin or (), loopback=is_loopback(host))
    if not access.loopback and api_key is None:
        screen.warn(f"whoever reaches {host} can use this model: give it an --api-key")
    service = workflow.open_service(
        [*(adapters or ()), *(adapter or ())],
        screen,
        options.load_options(quantization, device, no_verify, raw),
        Limits(rows, queue, max_tokens, max_prompt_tokens, max_output_tokens),
        behind,
    )
    names = list(service.engine.models())

    def ready(address: str) -> None:
        if json:
            print_line(json_format.dumps({"address": address, "models": names}))
        screen.note(f"serving {', '.join(names)} at {address}/v1 (Ctrl-C ends it)")

    workflow.serve(service, host, port, ready, Rules(access, timeout, _log, log_prompts), grace)
    screen.note("stopped")


def _log(entry: Mapping[str, Any]) -> None:
    """One line of the access log."""
    sys.stderr.write(json_format.dumps(entry, ensure_ascii=False) + "\n")
    sys.stderr.flush()
