"""Commands and finished runs that several test files use."""

import json

import torch

from tests.support.terminal import SHORT

PROMPTS = 4
CANDOUR = ("-b", "own.yaml", "--value", "candour")
TRAIN = ("train", "tiny.yaml", *SHORT)
GENERATE = ("generate", "Hello.", "--max-new-tokens", "4")


def change_evaluation(run, **settings):
    """Change what the recipe inside an adapter says about evaluation."""
    path = run / "adapter" / "pasto.json"
    meta = json.loads(path.read_text())
    meta["recipe"]["evaluation"] |= settings
    path.write_text(json.dumps(meta))


def score_every_answer(run):
    """Random weights hardly ever answer Yes or No: with no threshold to speak of, what little there
    is gets scores."""
    change_evaluation(run, pmass_threshold=1e-12)


def base_text(lm, prompt, tokens):
    ids = torch.tensor([lm.chat.prompt(prompt)])
    with torch.no_grad():
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
        )
    return lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
