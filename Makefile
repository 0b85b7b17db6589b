# Two commands matter: `make demo` and `make test`. Everything they need is brought into this folder.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help bootstrap demo test test-containers check export lock bench bench-calls bench-deletion bench-gate recovery chaos prove-deletion up down status logs clean

# the first interpreter that runs and is of a version the project supports
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	>/dev/null 2>&1 && echo "$$name" && exit; done; echo python3)
RUN := .venv/bin/python
VISITORS ?= 1
SERVICE ?=
KAFKA_NODES ?= 1
KAFKA_TLS ?=
STANDBY ?=
FAULTS ?= 200
SEED ?=
REPLAY ?=
REPORT_LANGUAGE ?= en
PYTEST_ARGUMENTS ?=

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

bootstrap: ## fetch what is missing into .tools and .venv
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: sudo apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) deploy/bootstrap.py

demo: bootstrap ## the whole story in one terminal (VISITORS=50: fifty at once)
	@$(RUN) -m deploy.demo --visitors $(VISITORS)

test: bootstrap ## all tests but the long ones (PYTEST_ARGUMENTS="-k name")
	@SIPP=$$($(RUN) deploy/bootstrap.py sipp) || exit 1; export SIPP; \
	$(RUN) -m pytest -n 2 --dist loadscope $(PYTEST_ARGUMENTS)

CONTAINER_TESTS ?= tests/integration/test_containers.py tests/component/chassis \
	tests/integration/test_chassis_process.py tests/integration/test_consent.py \
	tests/integration/test_calls.py

test-containers: bootstrap ## a chosen part on PostgreSQL and Kafka from their images, by TLS (needs a Docker engine)
	@STACK=containers $(RUN) -m pytest -n 2 --dist loadscope -m 'not chaos and not perf' \
	$(CONTAINER_TESTS) $(PYTEST_ARGUMENTS)

check: bootstrap ## static checks: format, lint, types, layers, generated files
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@.venv/bin/lint-imports
	@$(RUN) -m schemas.export --check
	@$(RUN) -m services.retention compile --check

up: bootstrap ## start the platform and leave it running (KAFKA_NODES=3, KAFKA_TLS=1, STANDBY=1); data: var/main
	@$(RUN) -m deploy.local up --kafka-nodes $(KAFKA_NODES) $(if $(KAFKA_TLS),--kafka-tls) $(if $(STANDBY),--standby)

down: bootstrap ## end what `make up` started
	@$(RUN) -m deploy.local down

status: bootstrap ## what runs, where, and is it well
	@$(RUN) -m deploy.local status

logs: bootstrap ## follow the logs (SERVICE=gateway for one)
	@$(RUN) -m deploy.local logs $(SERVICE)

export: bootstrap ## write anew what is generated: JSON Schema, AsyncAPI, notice tables, alerts
	@$(RUN) -m schemas.export
	@$(RUN) -m services.retention compile

bench: bootstrap ## measure the ad-view path beside COPY and a naive consumer; no verdict
	@$(RUN) -m benchmarks.ad_view

bench-deletion: bootstrap ## measure the drop of a day beside DELETE, and the erasure of one person; no verdict
	@$(RUN) -m benchmarks.deletion

bench-gate: bootstrap ## measure the transfer gate, and how soon a withdrawal reaches it; no verdict
	@$(RUN) -m benchmarks.gate

bench-calls: bootstrap ## measure call set-up and cut error with and without load beside them; no verdict
	@$(RUN) -m benchmarks.calls

recovery: bootstrap ## measure how long the path stands still after kills and restarts; no verdict
	@$(RUN) -m benchmarks.recovery

chaos: bootstrap ## 2,000 visitors and FAULTS=200 faults, SEED=… to choose; report in var/chaos (REPLAY=<report>)
	@$(RUN) -m tests.chaos --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) $(if $(REPLAY),--replay $(REPLAY))

prove-deletion: bootstrap ## canaries through everything, then nobody finds them; page and JSON in var/proof (REPORT_LANGUAGE=de)
	@$(RUN) -m deploy.proof --language $(REPORT_LANGUAGE)

lock: bootstrap ## resolve all versions anew (requirements.lock, jgo.lock.toml)
	@$(RUN) -m deploy.relock

clean: bootstrap ## end the stack and remove its data, secrets and logs (var/)
	@$(RUN) -m deploy.local down
	@rm -rf var .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
