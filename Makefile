# `make run` starts a compute for a person at a terminal; `make test` is everything CI runs.
.DEFAULT_GOAL := help
.PHONY: help run test fmt lint unit doc apart mermaid openapi ui fuzz-smoke diagrams bench mutants image postgres

# Cargo has jobs of its own, and no use for the way to those of make, which is closed to it.
export CARGO_MAKEFLAGS :=

# Postgres refuses to run as root. As root, tests are built as root and run as an unprivileged user.
ifeq ($(shell id -u),0)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := $(CURDIR)/.ci/unprivileged
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER := $(CURDIR)/.ci/unprivileged
endif

help:
	@echo 'make run        install PostgreSQL if there is none, build, start a compute on this machine'
	@echo 'make test       everything CI runs'
	@echo 'make bench      ratios to floors measured in the same run'
	@echo 'make diagrams   write the diagrams and the transition table again'
	@echo 'make mutants    break the machine cell by cell and see that the tests notice'
	@echo 'make image      build a container image (docker or podman)'

# Starts PROGRAM itself, not through a shell, so that a signal to make reaches it.
run: postgres
	cargo build --release --locked
	@target/release/compute_ctl run --standalone

postgres:
	@.ci/install-postgres

# What fills every core comes first. The tests mostly wait, for servers and for clocks, and beside them runs what has
# nothing to do with them; the fuzzer, which waits for nothing, gives way.
test: postgres fmt lint doc
	cargo test --workspace --locked --no-run
	$(MAKE) --jobs=2 unit apart

apart:
	$(MAKE) mermaid openapi ui
	nice $(MAKE) fuzz-smoke

fmt:
	cargo fmt --all --check

# The second time without the features that only tests ask for in dependencies, as what is shipped is built.
lint:
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --locked -- -D warnings

unit:
	cargo test --workspace --locked --no-fail-fast

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --locked

mermaid:
	.ci/mermaid/run

ui: postgres
	.ci/ui/run

openapi: postgres
	.ci/schemathesis/run

fuzz-smoke:
	.ci/fuzz-smoke

diagrams:
	env -u CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER -u CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER \
		UPDATE_DIAGRAMS=1 cargo test --package compute-states --test diagrams --locked

bench: postgres
	cargo bench --workspace --locked

mutants:
	cargo test --package compute-states --test mutation --locked -- --nocapture

image:
	$$(command -v docker || command -v podman) build --tag compute_ctl .
