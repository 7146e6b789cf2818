# One door: `make` prints what there is; CI runs only these targets.

SHELL := bash
.DEFAULT_GOAL := help
# The suites share the machine, the build directory and ports: one after the other, also under -j.
.NOTPARALLEL:

CARGO ?= cargo
PYTHON ?= python3
NODE ?= node
# The token that `make run` accepts for POST /api/v1/events.
GATEWAY_INGEST_TOKEN ?= dev-token

# More than there are cores: the tests mostly wait for processes.
TEST_THREADS ?= 8

TARGET := $(or $(CARGO_TARGET_DIR),target)
LOGS := target/ci
BENCH := target/bench-micro
CHART_VENV := .tools/helm-venv
CLIENTS_PYTHON := .tools/clients-venv/bin/python

# $(call logged,NAME,COMMANDS): runs the commands and keeps their output for the counts.
logged = @mkdir -p $(LOGS) && set -o pipefail && { $(2); } 2>&1 | tee $(LOGS)/$(1).log

.PHONY: help
help: ## Print the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

##@ Try it
.PHONY: run
run: ## Build and run one node on http://localhost:5000 (REDIS_URL=redis://… joins a fleet)
	@echo 'Live page:  http://localhost:5000   (after the build)'
	@echo 'An event:   curl -H "Authorization: Bearer $(GATEWAY_INGEST_TOKEN)" -H "Content-Type: application/json" \'
	@echo '              -d '\''{"event_type":"page_view","page_url":"/cv","visitor_id":"me"}'\'' http://localhost:5000/api/v1/events'
	@GATEWAY_DRAIN_DELAY=$${GATEWAY_DRAIN_DELAY:-0} GATEWAY_INGEST_TOKEN=$(GATEWAY_INGEST_TOKEN) $(CARGO) run --locked --profile fast -p gateway

.PHONY: bench
bench: ## Run the load tester, optimised (BENCH_ARGS=… for its options)
	$(CARGO) run -q --locked --profile fast -p loadtest -- $(BENCH_ARGS)

##@ Test it
.PHONY: test
test: redis-server test-rust ## Run the Rust tests; installs redis-server when missing

# Set for the targets that end in -valkey, or by whoever calls.
REDIS_SERVER ?= redis-server
# PROFILE=fast: optimised gateways, for many runs at a time.
LAB = $(CARGO) test -q --locked $(if $(PROFILE),--profile $(PROFILE)) -p gateway --test chaos

.PHONY: chaos
chaos: redis-server ## The failure lab: 20 fresh seeds (RUNS=200, ADD=1 adds to earlier runs, SEED=… TIMES=… replays, TOPOLOGY=…, JOBS=4, KEEP_GOING=1)
	RUNS=$(RUNS) ADD=$(ADD) SEED=$(SEED) TIMES=$(TIMES) TOPOLOGY=$(TOPOLOGY) JOBS=$(JOBS) KEEP_GOING=$(KEEP_GOING) \
		REDIS_SERVER=$(REDIS_SERVER) $(LAB) -- --ignored --exact --nocapture lab::lab

.PHONY: chaos-pauses
chaos-pauses: redis-server ## SIGSTOP of the ticker for 20 s, 50 times (PAUSES=…), in 10 clusters at a time (JOBS=…)
	PAUSES=$(PAUSES) JOBS=$(JOBS) REDIS_SERVER=$(REDIS_SERVER) $(LAB) -- --ignored --exact --nocapture pauses::pauses

.PHONY: chaos-planted
chaos-planted: redis-server ## Does the failure lab find the bugs that are planted for it? (JOBS=4)
	JOBS=$(JOBS) REDIS_SERVER=$(REDIS_SERVER) $(LAB) --features planted-bugs -- --ignored --exact --nocapture hunt::all_planted_bugs_are_found

.PHONY: chaos-valkey test-valkey
chaos-valkey: ## The failure lab against Valkey: two seeds of each topology; installs valkey-server when missing (apt-get)
test-valkey: ## The contract of the backplane and the integration tests against Valkey
chaos-valkey test-valkey: export REDIS_SERVER = valkey-server
chaos-valkey: valkey-server
	RUNS=$(or $(RUNS),8) SEED=$(SEED) JOBS=$(JOBS) KEEP_GOING=$(KEEP_GOING) $(LAB) -- --ignored --exact --nocapture lab::lab
test-valkey: valkey-server
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked -p gateway --test it --test model

.PHONY: acceptance
acceptance: redis-server ## The slow tests: real intervals, minutes each
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked -p gateway --test it -- --ignored acceptance_
	$(CARGO) test --locked --profile fast -p gateway --test model -- --ignored acceptance_

.PHONY: bench-idle
bench-idle: redis-server ## Memory and CPU of idle sockets: the slope from 2,000 to 18,000, over ten minutes
	$(CARGO) build -q --locked --release -p gateway -p loadtest
	loadtest/idle.sh $(TARGET)/release

.PHONY: bench-fanout bench-storm bench-slow bench-accept bench-connect bench-most bench-soak
bench-fanout: ## Cost of a delivery to 10,000 sockets, beside a plain send loop; most deliveries per second
bench-storm: ## 10,000 clients drop and come again at once
bench-slow: ## What the others notice while a tenth of the clients hardly reads, and what memory that takes
bench-connect: ## Cost of a handshake with Redis, beside a plain accept loop
bench-accept: ## Cost of a handshake without Redis, beside the same
bench-most: ## 19,000 sockets on one node: all get init, all stay through three heartbeats
bench-soak: ## 3,000 clients come and go for half an hour
bench-fanout bench-storm bench-slow bench-accept bench-connect bench-most bench-soak: bench-%: redis-server
	$(CARGO) build -q --locked --release -p gateway -p loadtest
	loadtest/bench.sh $* $(TARGET)/release $(BENCH_ARGS)

.PHONY: bench-floor
bench-floor: ## Is the plain send loop that the others are compared with within 5 % of a bare loop of send(2)?
	$(CARGO) build -q --locked --release -p loadtest
	$(TARGET)/release/loadtest bare --max-ratio 1.05 $(BENCH_ARGS)

.PHONY: bench-uring
bench-uring: ## What io_uring would save of a send(2) per socket (ADR 16)
	$(CARGO) run -q --locked --release -p loadtest --features uring --example uring

.PHONY: million
million: redis-server ## A million sockets over 53 gateways on one Redis (SOCKETS=100000 for fewer); needs 16 GiB
	$(CARGO) build -q --locked --release -p gateway -p loadtest
	loadtest/million.sh $(TARGET)/release $(SOCKETS)

.PHONY: bench-micro
bench-micro: valgrind ## Instructions of the small pieces of work, and the memory of an idle socket
	@mkdir -p $(BENCH)
	@set -o pipefail && $(CARGO) bench -q --locked -p gateway --features bench --bench micro --no-run --message-format=json \
		| $(PYTHON) .ci/count_instructions.py --built > $(BENCH)/binary
	@_RJEM_MALLOC_CONF=tcache:false "$$(cat $(BENCH)/binary)" idle-socket $(BENCH)/memory.json
	@$(PYTHON) .ci/count_instructions.py "$$(cat $(BENCH)/binary)" $(BENCH)/instructions.json

.PHONY: bench-budget
bench-budget: bench-micro ## Has any of them become dearer than its budget allows?
	@$(PYTHON) .ci/check_bench_budget.py $(BENCH)/memory.json $(BENCH)/instructions.json

.PHONY: bench-renew
bench-renew: bench-micro ## Make what they cost now the budget; say why in the commit
	@$(PYTHON) .ci/check_bench_budget.py --write-budget $(BENCH)/memory.json $(BENCH)/instructions.json

.PHONY: ci
ci: ci-start fmt-check clippy test-checkers docs-check chart lint-files test test-browser test-clients test-autobahn ci-counts ## Everything that CI runs

.PHONY: test-rust
test-rust: ## Rust tests of all crates (needs redis-server)
	$(call logged,rust,RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked --workspace --no-fail-fast)

.PHONY: test-browser
test-browser: ## The live page and the clients of the protocol page, in headless Chromium
	@.ci/install-browser-tools.sh
	@$(CARGO) build -q --locked -p gateway
	$(call logged,browser,cd gateway/tests/browser && npm test --silent)

.PHONY: test-clients
test-clients: ## Independent WebSocket clients against a node
	@.ci/install-browser-tools.sh
	@$(CARGO) build -q --locked -p gateway
	$(call logged,clients,$(CLIENTS_PYTHON) gateway/tests/clients/test_websockets.py)

.PHONY: test-autobahn
test-autobahn: ## Autobahn's protocol cases against the socket layer
	$(call logged,autobahn,gateway/tests/autobahn/run.sh)

.PHONY: chart
chart: $(CHART_VENV)/.installed ## Lint, render and validate the Helm chart, without helm or a cluster
	@$(CARGO) build -q --locked -p gateway
	$(call logged,chart,$(CHART_VENV)/bin/python helm/tools/check_chart.py --gateway $(TARGET)/debug/gateway)

.PHONY: chart-update
chart-update: $(CHART_VENV)/.installed ## Accept changed renders of the chart: goldens and its README's table
	@$(CHART_VENV)/bin/python helm/tools/check_chart.py --update

##@ Keep it tidy
.PHONY: fmt
fmt: ## Format the Rust code
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check: ## Is the Rust code formatted?
	$(CARGO) fmt --all --check

.PHONY: clippy
clippy: ## Lint the Rust code; a warning is an error
	$(CARGO) clippy --locked --workspace --all-targets --features gateway/bench,loadtest/comparison,loadtest/uring -- -D warnings
	$(CARGO) clippy --locked -p gateway --tests --features planted-bugs -- -D warnings

.PHONY: docs-check
docs-check: ## Are the code map, links and invariants of the documents true?
	@$(PYTHON) .ci/check_docs.py
	@$(PYTHON) .ci/check_invariants.py

.PHONY: lint-files
lint-files: $(CHART_VENV)/.installed ## Lint Dockerfile, workflow and shell scripts
	@$(CHART_VENV)/bin/hadolint Dockerfile
	@$(CHART_VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@git ls-files -z '*.sh' .ci/run | xargs -0 $(CHART_VENV)/bin/shellcheck

.PHONY: test-checkers
test-checkers: ## Do the checkers of .ci notice what they are for?
	$(call logged,checkers,$(PYTHON) .ci/test_checkers.py)

##@ Set up and clean up
.PHONY: redis-server
redis-server: ## Install redis-server when it is missing (apt-get, dnf or brew)
	@.ci/install-redis-server.sh

.PHONY: valkey-server
valkey-server: ## Install valkey-server when it is missing (apt-get)
	@.ci/install-valkey-server.sh

.PHONY: valgrind
valgrind: ## Install valgrind when it is missing (apt-get or dnf)
	@.ci/install-valgrind.sh

$(CHART_VENV)/.installed: helm/tools/requirements.txt
	@echo "installing the chart's tools into $(CHART_VENV)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("the checks need Python 3.11 or newer: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv --clear $(CHART_VENV)
	@$(CHART_VENV)/bin/pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: clean
clean: ## Remove what was built and the tools that were installed for the checks
	$(CARGO) clean
	rm -rf .tools gateway/tests/browser/node_modules

# Old logs must not count as this run's.
.PHONY: ci-start
ci-start:
	@rm -rf $(LOGS)

.PHONY: ci-counts
ci-counts:
	@$(PYTHON) .ci/check_counts.py $(LOGS)/*.log

.PHONY: test-floors
test-floors: ## Make the counts of the last `make ci` the floors
	@$(PYTHON) .ci/check_counts.py --write-floors $(LOGS)/*.log
