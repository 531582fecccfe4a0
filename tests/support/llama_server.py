"""llama.cpp's own HTTP server from the wheel `xllamacpp`, with those of llama-server's options that
pasto uses: `python llama_server.py -m BASE.gguf --lora A.gguf --host 127.0.0.1 --port 8080`."""

import argparse
import signal

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", required=True)
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--lora-init-without-apply", action="store_true")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--kv-unified", action="store_true")
    parser.add_argument("--ctx-size", type=int, default=4096)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.m
    params.n_ctx, params.n_parallel, params.kv_unified = (
        given.ctx_size,
        given.parallel,
        given.kv_unified,
    )
    params.hostnames, params.port, params.warmup = [given.host], given.port, False
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in given.lora]
    params.lora_init_without_apply = given.lora_init_without_apply
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
