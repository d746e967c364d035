# Everything from nothing but Python 3.11 and make. Each target sets itself up first; a second time that costs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
READY := $(VENV)/.ready
SOURCES := subjects codec runtime store workers bridge client stack cli tests benchmarks examples deploy

.PHONY: setup demo up test check contracts format bench soak asyncapi fuzz lock clean

setup: $(READY)

# uv itself is in the lock: pip installs that one package, with its hashes, and uv installs the rest.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version)'
	@test -x $(UV) && test -x $(PY) || { \
	  echo "making $(VENV)" && "$(PYTHON)" -m venv $(VENV) && \
	  awk '/^uv==/ {on=1} on && /^    # via/ {exit} on' requirements.lock > $(VENV)/uv.lock && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock; }
	@echo "installing the locked packages"
	@$(UV) pip sync --quiet --python $(PY) --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --offline --editable .
	@touch $@

demo: $(READY)
	@$(PY) examples/demo.py

up: $(READY)
	@$(PY) -m cli up

# Two processes, each with servers of its own; what starts whole platforms goes to one of them.
test: $(READY)
	@$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy $(wildcard $(SOURCES))
	$(PY) -m pytest tests/contract/test_imports.py

# What is committed under schemas/: after every change of a contract.
contracts: $(READY)
	@$(PY) -m cli contracts --update

format: $(READY)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(READY)
	@$(PY) -m benchmarks
	@$(PY) -m benchmarks.retrieval

# P12: a whole platform at half load, MINUTES long; fails when anything grows or is lost.
soak: $(READY)
	@$(PY) -m benchmarks.soak --minutes $(or $(MINUTES),30)

# Thousands of requests to every route, other ones each time. FUZZ_EXAMPLES a route and kind of request.
FUZZ_EXAMPLES ?= 200
fuzz: $(READY)
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PY) -m pytest tests/contract/test_fuzz.py -s

# The reference parser of AsyncAPI, in a folder of its own: it is no part of the package.
ASYNCAPI_PARSER := $(VENV)/asyncapi
asyncapi: $(READY)
	@test -d $(ASYNCAPI_PARSER)/node_modules/@asyncapi/parser || \
	  npm install --silent --no-save --prefix $(ASYNCAPI_PARSER) @asyncapi/parser@3
	@NODE_PATH="$$PWD/$(ASYNCAPI_PARSER)/node_modules" node schemas/check_asyncapi.mjs schemas/asyncapi.json

lock:
	$(UV) pip compile pyproject.toml --all-extras --generate-hashes --python-version 3.11 --universal -o requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
