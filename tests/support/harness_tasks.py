"""Tasks of lm-evaluation-harness that need no network: sums, as choices and as text."""

import json
from pathlib import Path

DOCUMENTS = 8
_COMMON = """
task: {task}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{question}}}} Answer:"
"""
_CHOICES = """
output_type: multiple_choice
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
_TEXT = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
_ROLLING = """
output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list:
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""


def documents() -> list[dict]:
    """Sums with three answers each; the right one is not always the first."""
    return [
        {
            "question": f"What is {i} plus {2 * i}?",
            "choices": [str(3 * i + 1), str(3 * i), f"more than {i}"],
            "answer": i % 3,
        }
        for i in range(1, DOCUMENTS + 1)
    ]


def write_tasks(folder: Path) -> Path:
    """A folder with the task files `sums`, `sums_text` and `sums_rolling`, and their data."""
    folder.mkdir(exist_ok=True)
    data = folder / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, documents())))
    for task, rest in (
        ("sums", _CHOICES),
        ("sums_text", _TEXT),
        ("sums_rolling", _ROLLING),
    ):
        common = _COMMON.format(task=task, data=data)
        if task == "sums_rolling":
            common = common.replace('doc_to_text: "{{question}} Answer:"', 'doc_to_text: ""')
        (folder / f"{task}.yaml").write_text(common + rest)
    return folder
