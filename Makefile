# Two commands for a person: `make demo` and `make test`. Each makes .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
MINUTES ?= 30

.PHONY: venv demo test chaos check docs reference bench bench-snapshots bench-downtime bench-kubernetes bench-prefect \
  cluster cluster-down format lock clean

venv: .venv/ready          ## .venv with the command in it: `. .venv/bin/activate`

demo: .venv/ready          ## launch an agent, move it there and back, prove that nothing was lost
	$(BIN)/lobstertrap demo $(ARGS)

test: .venv/ready          ## every test that this machine can run
	$(BIN)/pytest -n 4 --dist loadfile $(ARGS)

chaos: .venv/ready         ## the long proof: MINUTES=30, LOBSTERTRAP_SEED=n repeats a run
	LOBSTERTRAP_SEED=$${LOBSTERTRAP_SEED:-$$(date +%s)} \
	  LOBSTERTRAP_CHAOS_MINUTES=$(MINUTES) $(BIN)/pytest -m long --timeout 7200 $(ARGS)

check: .venv/ready         ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready          ## the site, in .site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

reference: .venv/ready     ## docs/reference, from the commands and the models
	$(BIN)/python deployments/reference.py docs/reference

bench:                     ## both of the next two; each alone takes ARGS
	$(MAKE) bench-snapshots ARGS=
	$(MAKE) bench-downtime ARGS=

bench-snapshots: .venv/ready ## the snapshot engine beside its peers; as root it installs them
	@for peer in restic borg zstd; do command -v $$peer || test "$$(id -u)" != 0 || \
	  apt-get install -qy restic borgbackup zstd; done >/dev/null || true
	$(BIN)/python -m benchmarks.snapshots $(ARGS)

cluster: .venv/ready       ## a real single-node Kubernetes; prints its kubeconfig (root)
	@$(BIN)/python tests/cluster/up

cluster-down: .venv/ready  ## remove every trace of it
	@$(BIN)/python tests/cluster/down

bench-downtime: .venv/ready ## how long an agent is down when it moves, beside doing it by hand
	$(BIN)/python -m benchmarks.downtime .bench $(ARGS)

bench-kubernetes: .venv/ready ## a mover pod beside `kubectl exec tar`, launch beside `kubectl apply` (root)
	$(BIN)/python -m benchmarks.kubernetes $(ARGS)

bench-prefect: .venv/ready  ## what Prefect costs: around a deployment's run, between steps, by command
	$(BIN)/python -m benchmarks.prefect $(ARGS)

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lock is whole, so pip resolves nothing. It holds no index and needs uv, which nothing else here does.
lock:
	uv pip compile -q pyproject.toml --all-extras --group dev --group build \
	  --python-version 3.11 --universal --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate -o requirements.lock

.venv/ready: requirements.lock pyproject.toml hatch_build.py src/lobstertrap/repository/batch.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "setting up .venv (once) ..."
	@$(PYTHON) -m venv --clear .venv || \
	  { echo "this Python has no venv module (Debian: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv .demo .site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
