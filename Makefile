# `make serve` sets up .venv from locks with hashes: what serving needs. `make install-training`
# adds what training needs to it, and `make test` what all other targets need.
# `make audit`, `licences`, `sbom`, `lock`: so with .venv-audit, where what is looked at
# isn't mixed with what looks; and `make robustness` with .venv-robustness beside .venv.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PRESETS := $(filter-out post,$(notdir $(basename $(wildcard model/presets/*.toml))))
AUDIT := .venv-audit/bin
SERVICE ?= pypi
COMPILE := $(AUDIT)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header

.PHONY: help serve wheel install-training test test-all coverage nightly browser ray robustness soak check docs screenshots train bench bench-streams bench-versions bench-wire bench-overload overload bench-ray bench-train audit licences sbom lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

QUIET := --quiet --disable-pip-version-check

# hatchling (build.lock) makes the command .venv/bin/unrolled, and the wheel.
.venv/ready: requirements/slim.lock requirements/build.lock
.venv-ray/ready: requirements/dev.lock requirements/ray.lock
.venv-audit/ready: requirements/audit.lock
.venv-robustness/ready: requirements/robustness.lock
.venv-docs/ready: requirements/docs.lock
.venv/ready .venv-audit/ready .venv-docs/ready .venv-ray/ready .venv-robustness/ready:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed"; exit 1; }
	@echo "Setting up $(@D) (once, about a minute): $$(cat $^ | grep -c ==) packages"
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	@# A pipe has the exit status of its last command: the file says that pip succeeded.
	@rm -f $@
	@{ $(@D)/bin/python -m pip install --disable-pip-version-check --progress-bar off \
		--require-hashes $(addprefix --requirement ,$^) && touch $@; } \
		| grep --line-buffered -o -e '[^ ]*whl ([0-9.]* MB)' -e '^Installing.*packages'; test -e $@
	@# The command .venv/bin/unrolled, which runs what is in this folder.
	@$(if $(filter .venv,$(@D)),$(BIN)/python -m pip install $(QUIET) \
		--no-index --no-deps --no-build-isolation --editable . || { rm $@; false; })

# The locks have the same pins: these add packages, and change none.
.venv/ready-train .venv/ready-dev: .venv/ready-%: requirements/%.lock .venv/ready
	@echo "Installing $< into .venv (once; one to two minutes)"
	$(BIN)/python -m pip install $(QUIET) --require-hashes --requirement $<
	@touch $@

serve: .venv/ready ## serve the shipped bundles on 127.0.0.1:8000
	$(BIN)/unrolled serve

install-training: .venv/ready-train ## add what training needs to .venv: TensorFlow and more (2.4 GB)

wheel: .venv/ready ## build dist/unrolled-VERSION-py3-none-any.whl: code, presets, data, shipped bundles
	$(BIN)/python -m hatchling build --target wheel

# One process for each core; the tests of a class stay together.
WORKERS ?= auto
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 8 --dist loadscope

test: .venv/ready-dev ## the tests that answer "does it work here?" (three minutes)
	$(BIN)/python -m pytest $(PARALLEL)

test-all: .venv/ready-dev ## all other tests that need no special machine, and more examples (twenty minutes at most)
	$(BIN)/python -m pytest $(PARALLEL) -m "(slow or hypothesis) and not nightly and not browser and not ray"

coverage: .venv/ready-dev ## line and branch coverage of `make test` and `make test-all`, subprocesses included
	$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest $(PARALLEL) -m "not nightly and not browser and not ray"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

nightly: .venv/ready-dev ## the tests that take minutes: memory, answers under load
	$(BIN)/python -m pytest -m nightly
	$(BIN)/python -m bench.serving.batch_invariance

browser: .venv/ready-dev ## the playground in headless Chromium, drawn on with a mouse (three minutes)
	$(BIN)/python -m pytest -m browser

BEHIND := $(addprefix tests/,service/api/test_api.py service/api/test_openapi.py \
	service/api/test_stream_routes.py service/client/test_client.py service/compat/test_compression.py \
	service/compat/test_errors.py clients/test_kserve.py) \
	$(wildcard $(addprefix tests/,service/compat/test_open_inference*.py \
	service/compat/test_tf_serving*.py clients/test_triton*.py))
ray: .venv-ray/ready ## the service on a Ray cluster of two nodes, and its API behind Ray (fifteen minutes)
	.venv-ray/bin/python -m pytest -m ray
	.venv-ray/bin/python -m pytest --behind ray $(BEHIND)

robustness: .venv/ready-dev .venv-robustness/ready ## attacks, faults, overload, shutdown: the whole checklist
	$(BIN)/python -m tests.robustness

MINUTES ?= 30
soak: .venv/ready-dev ## callers of all kinds for MINUTES=30, memory in runs/soak.png
	@mkdir -p runs
	$(BIN)/python -m tests.robustness.endurance.soak --minutes $(MINUTES) --plot runs/soak.png

check: .venv/ready-dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv-docs/ready ## build the documentation: dist/site (needs no network)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "Open dist/site/index.html. To search it: python3 -m http.server --directory dist/site"

screenshots: .venv/ready-dev ## pictures of the playground for docs/playground (needs Chromium)
	$(BIN)/python -m tests.browser.screenshots

train: .venv/ready-train ## train every preset anew: bundles/NAME/NEXT-VERSION, promoted
	for preset in $(PRESETS); do \
		$(BIN)/unrolled train $$preset --output bundles --promote always || exit 1; \
	done

bench: .venv/ready-dev ## throughput and latency beside other servers (half an hour)
	$(BIN)/python -m bench.serving $(if $(LITSERVE),--litserve $(LITSERVE)) $(if $(BENTOML),--bentoml $(BENTOML))

bench-streams: .venv/ready-dev ## live streams beside a server written by hand (ten minutes)
	$(BIN)/python -m bench.streams

bench-versions: .venv/ready-dev ## latency while versions change, beside none (two minutes)
	$(BIN)/python -m bench.serving.model_updates

bench-wire: .venv/ready-dev ## the protocols beside each other (two minutes)
	$(BIN)/python -m bench.serving.protocols

bench-overload: .venv/ready-dev ## goodput at 0.5 to 10 times the most, beside FastAPI (ten minutes)
	@mkdir -p runs
	$(BIN)/python -m bench.overload --json runs/overload.json --plot runs/overload.png

bench-ray: .venv-ray/ready ## what Ray costs, and a million sequences on it (fifteen minutes)
	.venv-ray/bin/python -m bench.cluster.ray_overhead
	.venv-ray/bin/python -m bench.cluster.bulk_scoring

overload: bench-overload

bench-train: .venv/ready-dev ## seconds an epoch beside PyTorch (needs requirements/bench.lock)
	$(BIN)/python -m bench.training

audit: .venv-audit/ready ## known vulnerabilities in the locks (SERVICE=osv asks another database)
	$(AUDIT)/python requirements/check.py audit --vulnerability-service $(SERVICE)

licences: .venv/ready-dev .venv-audit/ready ## write docs/licences.md; refuse licences not allowed
	$(AUDIT)/pip-licenses --python $(BIN)/python --from mixed --with-system --format json \
		--output-file .venv-audit/licences.json
	$(BIN)/python requirements/check.py licences .venv-audit/licences.json

sbom: .venv-audit/ready ## CycloneDX lists of what the images install: dist/*.cdx.json
	mkdir -p dist
	for lock in slim full ray; do \
		PYTHONWARNINGS=ignore $(AUDIT)/cyclonedx-py requirements requirements/$$lock.lock \
			--pyproject pyproject.toml --output-reproducible --validate \
			--output-format JSON --output-file dist/$$lock.cdx.json || exit 1; \
	done

lock: .venv-audit/ready ## resolve the dependencies of pyproject.toml anew
	$(COMPILE) pyproject.toml --extra train --extra search --extra signing --extra otel --group dev -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra tensorflow --extra signing --extra otel -c requirements/dev.lock -o requirements/full.lock
	$(COMPILE) pyproject.toml --extra signing --extra otel -c requirements/dev.lock -o requirements/slim.lock
	$(COMPILE) pyproject.toml --extra ray --extra signing --extra otel -c requirements/dev.lock -o requirements/ray.lock
	$(COMPILE) pyproject.toml --extra train --extra search --extra signing --extra otel -c requirements/dev.lock -o requirements/train.lock
	$(COMPILE) --group build -c requirements/dev.lock -o requirements/build.lock
	$(COMPILE) --group bench -c requirements/dev.lock -o requirements/bench.lock
	$(COMPILE) --group robustness -o requirements/robustness.lock
	$(COMPILE) --group docs -o requirements/docs.lock
	$(COMPILE) --group audit -o requirements/audit.lock

clean: ## remove what was set up and cached
	rm -rf .venv .venv-audit .venv-docs .venv-ray .venv-robustness dist .pytest_cache .mypy_cache .ruff_cache
