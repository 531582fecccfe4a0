"""Small servers with the routes of vLLM and llama-server, over real HTTP on loopback.

Each reads the LoRA files that it is told of and decodes with them on a tiny model: what pasto
exported is what answers.
"""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

BASE = "the-base"


@contextlib.contextmanager
def running(app):
    """The address of an application, served by a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def said(status, message, code=None):
    """An error as vLLM writes it: its code is the status."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code or status}
    return JSONResponse({"error": error}, status)


class Decoder:
    """Greedy completions of a tiny model, with LoRAs added to its modules."""

    def __init__(self, lm):
        self.lm = lm
        self.bodies = []
        """Every completion that was asked for."""
        self.lock = threading.Lock()

    def tokens(self, body, changes):
        """Yields (token, its log-probability, the likeliest ones)."""
        model, handles = self.lm.model, []
        ids = torch.tensor([body["prompt"]])
        with self.lock, torch.no_grad():
            for path, scale, a, b in changes:

                def add(_m, inputs, output, scale=scale, a=a, b=b):
                    return output + scale * (inputs[0] @ a.T) @ b.T

                handles.append(model.get_submodule(path).register_forward_hook(add))
            try:
                found = []
                for _ in range(body["max_tokens"]):
                    logp = model(input_ids=ids).logits[0, -1].log_softmax(-1)
                    token = int(logp.argmax())
                    top = logp.topk(3)
                    found.append((token, float(logp[token]), top))
                    ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
                    if token == self.lm.tokenizer.eos_token_id:
                        break
            finally:
                for handle in handles:
                    handle.remove()
        return found

    def text(self, token):
        return self.lm.tokenizer.decode([token], skip_special_tokens=True)

    def reply(self, body, changes, told):
        self.bodies.append(body)
        found = self.tokens(body, changes)
        ended = found[-1][0] == self.lm.tokenizer.eos_token_id
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(found)}

        def choice(token, finish):
            logprobs = told(self, token) if told else None
            return {
                "index": 0,
                "text": self.text(token[0]),
                "logprobs": logprobs,
                "finish_reason": finish,
            }

        if not body.get("stream"):
            whole = choice(found[-1], "stop" if ended else "length")
            whole["text"] = "".join(self.text(token) for token, _, _ in found)
            return JSONResponse({"choices": [whole], "usage": usage})

        def events():
            for number, token in enumerate(found):
                last = number == len(found) - 1
                finish = ("stop" if ended else "length") if last else None
                yield f"data: {json.dumps({'choices': [choice(token, finish)]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


class FakeVllm(Decoder):
    """vLLM's routes. `deaf`: loads LoRAs and then answers with the base, as engines have done."""

    def __init__(self, lm, deaf=False, rank=64):
        super().__init__(lm)
        self.deaf, self.rank = deaf, rank
        self.loras = {}
        self.calls = []
        """("load" or "unload", name), in order."""
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: PlainTextResponse("")),
                Route("/v1/models", self.models),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def models(self, _):
        own = {"id": BASE, "object": "model", "parent": None, "max_model_len": 4000}
        return JSONResponse({"data": [own, *({"id": n, "parent": BASE} for n in self.loras)]})

    async def load(self, request):
        body = await request.json()
        name, path = body["lora_name"], Path(body["lora_path"])
        self.calls.append(("load", name))
        if name in self.loras:
            return said(400, f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").exists():
            return said(404, f"No adapter found for {path}")
        config = json.loads((path / "adapter_config.json").read_text())
        if config["r"] > self.rank:
            return said(400, f"LoRA rank {config['r']} is greater than max_lora_rank {self.rank}.")
        tensors = load_file(path / "adapter_model.safetensors")
        self.loras[name] = [
            (
                module,
                1.0,
                tensors[f"base_model.model.{module}.lora_A.weight"],
                tensors[f"base_model.model.{module}.lora_B.weight"],
            )
            for module in config["target_modules"]
        ]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request):
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if self.loras.pop(name, None) is None:
            return said(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse("Success")

    async def complete(self, request):
        body = await request.json()
        if body["model"] != BASE and body["model"] not in self.loras:
            return said(404, f"The model `{body['model']}` does not exist.")
        if body["prompt"] and len(body["prompt"]) > 3000:
            return said(400, "This model's maximum context length is 3000 tokens.")
        changes = [] if self.deaf else self.loras.get(body["model"], [])
        return self.reply(body, changes, self.told if "logprobs" in body else None)

    @staticmethod
    def told(self, token):
        number, logprob, top = token
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return {
            "tokens": [self.lm.tokenizer.decode([number])],
            "token_logprobs": [logprob],
            "top_logprobs": [{self.lm.tokenizer.decode([n]): v for n, v in likeliest}],
            "text_offset": [0],
        }


class FakeLlamaServer(Decoder):
    """llama-server's routes, with adapters from GGUF files."""

    def __init__(self, lm, files):
        super().__init__(lm)
        self.files = list(files)
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: JSONResponse({"status": "ok"})),
                Route("/v1/models", lambda _: JSONResponse({"data": [{"id": BASE}]})),
                Route("/lora-adapters", self.adapters),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def adapters(self, _):
        each = [{"id": i, "path": str(f), "scale": 0.0} for i, f in enumerate(self.files)]
        return JSONResponse(each)

    def changes(self, number, scale):
        import gguf

        reader = gguf.GGUFReader(self.files[number])
        alpha = reader.fields["adapter.lora.alpha"].contents()
        tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
        parts = {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
        for name in tensors:
            if name.endswith(".lora_a"):
                _, layer, part, *_ = name.split(".")
                a, b = tensors[name], tensors[name.replace("lora_a", "lora_b")]
                yield f"model.layers.{layer}.{parts[part]}", scale * alpha / len(a), a, b

    async def complete(self, request):
        body = await request.json()
        lora = body.get("lora") or [{"id": i, "scale": 1.0} for i in range(len(self.files))]
        changes = [
            change
            for one in lora
            if one["scale"]
            for change in self.changes(one["id"], one["scale"])
        ]
        return self.reply(body, changes, self.told if body.get("n_probs") else None)

    @staticmethod
    def told(self, token):
        number, logprob, top = token
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        tops = [{"token": self.lm.tokenizer.decode([n]), "logprob": v} for n, v in likeliest]
        one = {"token": self.lm.tokenizer.decode([number]), "logprob": logprob}
        return {"content": [one | {"top_logprobs": tops[:3]}]}
