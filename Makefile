# Each target makes .venv and installs what it needs by itself; nothing happens again until pyproject.toml changes.

PYTHON ?= python3
PORT   ?= 3000
JOBS   ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
export BENTOML_DO_NOT_TRACK ?= True

.DEFAULT_GOAL := help
.PHONY: help run test clients check bench clean

help:  ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

run: $(VENV)/installed-train  ## train (or go on training), export with proof, and serve the digits on PORT
	@if ls runs/*/config.json >/dev/null 2>&1; then $(BIN)/ganserve train --resume; else $(BIN)/ganserve train; fi
	@$(BIN)/ganserve export --onnx --torchscript --force
	@printf '\n  http://127.0.0.1:%s is served from here on (Ctrl-C stops it). In another terminal:\n\n' $(PORT)
	@printf '    curl -s "http://127.0.0.1:%s/v1/digits/2026.png?scale=4" -o 2026.png\n' $(PORT)
	@printf "    curl -s http://127.0.0.1:%s/v1/generate -H 'content-type: application/json' -H 'accept: image/png' -d '{\"n\": 64, \"seed\": 7}' -o sheet.png\n" $(PORT)
	@printf '    curl -s http://127.0.0.1:%s/v1/model\n\n' $(PORT)
	@exec $(BIN)/bentoml serve --port $(PORT)

test: $(VENV)/installed-dev  ## the whole test suite, in JOBS processes
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

clients: $(VENV)/clients/kserve/installed $(VENV)/clients/mlserver/installed  ## other servers' clients, which `test` tries then

check: $(VENV)/installed-dev  ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-bench  ## time the formats of the newest artifact, and the server beside others
	$(BIN)/ganserve bench
	$(BIN)/python benchmarks/serving.py --quick

clean:  ## remove the environment and caches; runs/ and artifacts/ stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ganserve needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # the first that reads dependency groups
	@touch $@

$(VENV)/installed-train: pyproject.toml | $(VENV)/made
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-train
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed-train
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/clients/%/installed: pyproject.toml | $(VENV)/made
	$(PYTHON) -m venv $(VENV)/clients/$*
	$(BIN)/python -m pip --python $(VENV)/clients/$*/bin/python install --quiet --group client-$*
	@touch $@
