# Every target makes .venv first, where it is missing or older than pyproject.toml or constraints.txt.
# A torch 2.11 to 2.13 that .venv already has is kept; one that the machine has is found by
# `python3 -m venv --system-site-packages .venv`, run before the first `make`.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.PHONY: setup quickstart test slow nightly check format bench settings offline-kit

setup: $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python -m launch.quickstart

test: $(STAMP)
	$(BIN)/python -m pytest

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --dist loadgroup

nightly: $(STAMP)
	$(BIN)/python -m pytest -m nightly --dist loadgroup

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

settings: $(STAMP)
	$(BIN)/python -m train.config.reference > docs/settings.md

bench: $(STAMP)
	$(BIN)/python -m tests.benchmark

# For `python -m tests.gpu` on a machine without a network; CORPUS=FILE [SEPARATOR=LINE] and TOKENIZER=FOLDER replace
# the text and the tokenizer.
offline-kit: $(STAMP)
	@$(BIN)/python -m tests.gpu.kit $(if $(CORPUS),--corpus '$(CORPUS)') $(if $(SEPARATOR),--separator '$(SEPARATOR)') \
	    $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)')

# torch comes first: deepspeed, a source package, wants it to build (without its C++ operators: no compiler is needed),
# and pip would take the CUDA build, some gigabytes, on a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    echo "$(VENV) has no pip: delete the folder and run make again." >&2; exit 1; }
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	$(BIN)/python -c 'import re, importlib.metadata as m; raise SystemExit(not re.match(r"2\.1[123]\.", m.version("torch")))' \
	    2>/dev/null \
	|| if [ "$$(uname)" != Linux ] || nvidia-smi >/dev/null 2>&1; then $(PIP) -c constraints.txt torch; \
	else $(PIP) -c constraints.txt "torch==$$torch+cpu" 2>/dev/null \
	  || $(PIP) -c constraints.txt "torch==$$torch+cpu" --extra-index-url $(CPU_WHEELS); fi \
	|| { echo "torch $$torch cannot be installed. Install torch 2.11 to 2.13 into $(VENV), then run make again." >&2; exit 1; }
	@$(BIN)/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $(VENV)/constraints.txt
	@grep -v '^torch==' constraints.txt >> $(VENV)/constraints.txt
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	@$(PIP) -c $(VENV)/constraints.txt setuptools wheel packaging ninja py-cpuinfo
	@DS_BUILD_OPS=0 $(PIP) -c $(VENV)/constraints.txt --no-build-isolation -r $(VENV)/requirements.txt
	@touch $@

# Override with `make PYTHON=/path/to/python`.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3 python; do \
	    $$python -c 'import ensurepip, sys, venv; raise SystemExit(sys.version_info[:2] not in {(3, 11), (3, 12)})' \
	        >/dev/null 2>&1 && exec $$python -m venv $(VENV); \
	done; \
	echo "periln needs Python 3.11 or 3.12 with its venv module (Debian, Ubuntu: apt install python3.11-venv)." >&2; \
	echo "None was found on the PATH: write make PYTHON=/path/to/python" >&2; exit 1
