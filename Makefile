# Everything that one does here. Needs Python 3.11 or newer and make; the rest it installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A hash in every lock, no address: where packages come from is the machine's own configuration.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate pyproject.toml
TEST_DATA ?= $(abspath ../shared/data)
export TEST_DATA
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help run install test test-all test-long check bench format lock openapi swagger-ui clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: install ## Serve the bundled model on 127.0.0.1:8000 (FEATUREMAPS_PORT and the other settings apply)
	@exec $(BIN)/featuremaps serve

install: $(VENV)/.installed ## Install the locked dependencies and the command at .venv/bin/featuremaps

test: check ## Lint, types, import contracts and the test suite, long runs as samples
	$(BIN)/python -m pytest -m "not slow and not cuda"

test-all: check ## The same with every long run
	$(BIN)/python -m pytest -m "not cuda"

test-long: $(VENV)/.developing ## Only the long runs that make test leaves out
	$(BIN)/python -m pytest -m "slow and not cuda"

check: $(VENV)/.developing ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.developing ## Measure; the figures in tests/benchmarks/README.md come from here
	$(BIN)/python -m tests.benchmarks

format: $(VENV)/.developing ## Format the code and mend what a linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.developing ## Write the lock files anew from pyproject.toml, keeping what is pinned
	$(UV_COMPILE) --extra cpu -o requirements.lock
	$(UV_COMPILE) --extra cuda -o requirements-cuda.lock
	$(UV_COMPILE) --extra cpu --extra dev -o requirements-dev.lock

openapi: $(VENV)/.developing ## Write deploy/openapi.json anew
	$(BIN)/python -m deploy.write_openapi

SWAGGER_UI := 5.35.0
SWAGGER_UI_SHA512 := U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==
DOCS := service/web/static/docs

swagger-ui: ## Fetch the files that /docs is made of anew (needs npm)
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	npm pack --silent --pack-destination "$$dir" swagger-ui-dist@$(SWAGGER_UI) >/dev/null; \
	test "$$(openssl dgst -sha512 -binary "$$dir"/*.tgz | openssl base64 -A)" = "$(SWAGGER_UI_SHA512)"; \
	tar xzf "$$dir"/*.tgz -C "$$dir" --strip-components 1; \
	for file in swagger-ui.css swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt; do \
		install -m 644 "$$dir/$$file" $(DOCS)/; done; \
	for file in LICENSE NOTICE; do install -m 644 "$$dir/$$file" $(DOCS)/swagger-ui.$$file; done

clean: ## Remove what was installed and cached
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "featuremaps needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@test -f $(VENV)/.developing || $(PIP_INSTALL) -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.developing: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@$(PIP_INSTALL) -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ $(VENV)/.installed
