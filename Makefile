# The two commands that matter: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# `node/worker/v8/find` prints the path of the V8 archive, or nothing for the crate's own download;
# on stderr it names its choice.
V8 = archive=$$(node/worker/v8/find); if [ -n "$$archive" ]; then export RUSTY_V8_ARCHIVE="$$archive"; fi
# Where `scripts/setup` puts tools in the versions that CI uses.
export PATH := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/casemate/tools/bin:$(PATH)
# The compiler that rust-toolchain.toml names. A machine that has this version as `stable` alone,
# and cannot fetch toolchains, uses that.
PINNED := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
ifeq ($(shell rustup which --toolchain $(PINNED) rustc 2>/dev/null),)
ifneq ($(findstring rustc $(PINNED),$(shell rustc +stable --version 2>/dev/null)),)
export RUSTUP_TOOLCHAIN := stable
endif
endif
ONCE ?=
KEEP ?=
DEMO = target/debug/casemate-demo $(if $(ONCE),--once) $(if $(KEEP),--keep)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: demo
demo: build-told ## Run the whole path for real and leave it running (ONCE=1: end by itself; KEEP=1: keep its folder)
	@$(DEMO)

.PHONY: demo-image
demo-image: build-told ## The same with a node that an emulator boots from an image
	@scripts/setup test
	@$(DEMO) --image

.PHONY: build-told
build-told:
	@took=$$(cat target/build-secs 2>/dev/null || true)
	echo "demo: building every program with cargo, without optimisation: $$(grep -c '^\[\[package\]\]' Cargo.lock) crates and V8 the first"
	echo "      time, which takes minutes; then only what has changed. $${took:+The last build took $$took s. }The demo itself takes some seconds."
	start=$$SECONDS
	$(MAKE) build
	echo $$((SECONDS - start)) > target/build-secs
	echo "demo: built in $$((SECONDS - start)) s"

.PHONY: build
build: ## Install what is missing and build every program
	@scripts/setup build
	$(V8)
	cargo build --workspace --locked

# For how long `make test` runs each fuzz target.
FUZZ_SECS ?= 10
# Crates without IO: their tests take seconds. `-p` would build their dependencies with other
# features than `make build` does.
PURE = package(/^casemate-(path|trust|vault-core|wire|api|push)$$/)

.PHONY: check
check: ## What has to hold for every commit: format, spelling, lints of what has changed, architecture rules, tests of the code without IO
	@. scripts/stages
	stage setup scripts/setup check
	$(V8)
	stage format cargo fmt --all --check
	stage spelling typos
	changed=$$(scripts/changed)
	[ -z "$$changed" ] || stage "lints of what has changed" cargo clippy $$changed --all-targets --locked -- -D warnings
	stage "architecture rules" cargo nextest run --workspace --locked --test tidy
	stage "tests of the code without IO" cargo nextest run --workspace --locked --lib -E '$(PURE)'
	stages_done

.PHONY: test
test: ## Install what is missing and run every check and test, but for those that take minutes
	@. scripts/stages
	stage setup scripts/setup test
	$(V8)
	stage format cargo fmt --all --check
	stage spelling typos
	stage "dependency policy" cargo deny --locked check --hide-inclusion-graph bans licenses sources
	stage build cargo build --workspace --all-targets --locked
	stage tests cargo nextest run --workspace --locked --no-fail-fast
	stage lints cargo clippy --workspace --all-targets --locked -- -D warnings
	stage docs env RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked
	stage "examples in docs" cargo test --workspace --doc --locked
	stage "fuzz targets, $(FUZZ_SECS) s each" scripts/fuzz $(FUZZ_SECS)
	stages_done

.PHONY: test-image
ONLY ?= all()
test-image: build ## Boot the image through firmware with Secure Boot and TPM, update it, cut its power: half an hour; ONLY='test(NAME)' for less
	@scripts/setup test-image
	$(V8)
	cargo nextest run -p casemate-tests --locked --test image --run-ignored only -E "$(ONLY)"

.PHONY: test-upgrade
FROM ?=
test-upgrade: build ## Replace the programs of the revision FROM=... part by part with the present ones while a fleet serves, and go back
	@[ -n '$(FROM)' ] || { echo "name the revision to upgrade from: make test-upgrade FROM=v0.1.0" >&2; exit 2; }
	$(V8)
	git worktree remove --force target/earlier/source 2>/dev/null || true
	git worktree add --detach target/earlier/source '$(FROM)'
	(cd target/earlier/source && CARGO_TARGET_DIR=../build cargo build --workspace --locked)
	git worktree remove --force target/earlier/source
	CASEMATE_EARLIER="$$PWD/target/earlier/build/debug" cargo nextest run --workspace --locked -E 'package(casemate-tests) & binary(upgrade)'

.PHONY: test-shares
test-shares: build ## Fill memory and spin in ninety functions of two tenants, and measure a neighbour's pace: minutes, as root, on a quiet machine
	$(V8)
	cargo nextest run --workspace --locked --test shares --run-ignored only --no-capture

.PHONY: fuzz
TIME ?= 60
TARGET ?=
fuzz: ## Fuzz the parsers of untrusted bytes and the state machines that strangers drive: TIME=60 (seconds each), TARGET= (all)
	@scripts/fuzz $(TIME) $(TARGET)

.PHONY: bench
bench: bench-all ## Compare with workerd, deno and a plain server, in turn: target/bench/report.md (an hour); bench-NAME for one case

ROUNDS ?= 5
SECS ?= 4
BENCH_PROGRAMS = casemate casemate-control casemate-sandbox casemate-node casemate-vault casemate-gateway casemate-worker casemate-benches
bench-%:
	@scripts/setup bench
	$(V8)
	cargo build --release --locked $(addprefix -p ,$(BENCH_PROGRAMS))
	PATH="$$PWD/target/bench-tools/bin:$$PATH" target/release/casemate-bench $(filter-out all,$*) --rounds $(ROUNDS) --secs $(SECS)

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
INSTALL_FROM ?= target/release
PROGRAMS = casemate casemate-control casemate-launch casemate-node casemate-vault casemate-gateway casemate-worker
FILL = sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g'

.PHONY: install
install: ## Build for release and install programs, units and guides (PREFIX=/usr/local, DESTDIR=): docs/operate/install.md
	@scripts/setup build
	$(V8)
	cargo build --release --locked -p casemate -p casemate-control -p casemate-sandbox -p casemate-node -p casemate-vault -p casemate-gateway -p casemate-worker
	$(MAKE) install-files

.PHONY: install-files
install-files: ## Install what is built already, from INSTALL_FROM=target/release
	@root='$(DESTDIR)'
	put() { install -D -m "$$1" "$$2" "$$root$$3"; }
	fill() { install -d "$$(dirname "$$root$$2")"; $(FILL) "$$1" > "$$root$$2"; chmod 644 "$$root$$2"; }
	for program in $(PROGRAMS); do
	    put 755 '$(INSTALL_FROM)'/$$program '$(PREFIX)'/bin/$$program
	done
	for unit in casemate-control casemate-node; do
	    fill install/systemd/$$unit.service '$(PREFIX)'/lib/systemd/system/$$unit.service
	done
	fill install/sysusers.d/casemate.conf '$(PREFIX)'/lib/sysusers.d/casemate.conf
	fill install/tmpfiles.d/casemate.conf '$(PREFIX)'/lib/tmpfiles.d/casemate.conf
	for guide in operate/install.md operate/upgrade.md operate/README.md tenants/README.md; do
	    put 644 docs/$$guide '$(PREFIX)'/share/doc/casemate/$$guide
	done
	# A file that an operator has changed is not replaced.
	for config in control.toml node.toml vault.toml; do
	    [ -e "$$root$(SYSCONFDIR)/casemate/$$config" ] || put 640 install/etc/$$config '$(SYSCONFDIR)'/casemate/$$config
	done

.PHONY: uninstall
uninstall: ## Remove what was installed; configurations and state stay
	@root='$(DESTDIR)'
	for program in $(PROGRAMS); do rm -f "$$root$(PREFIX)/bin/$$program"; done
	rm -f "$$root$(PREFIX)"/lib/systemd/system/casemate-{control,node}.service
	rm -f "$$root$(PREFIX)"/lib/{sysusers.d,tmpfiles.d}/casemate.conf
	rm -rf "$$root$(PREFIX)/share/doc/casemate"

.PHONY: fmt
fmt: ## Format
	@cargo fmt --all

.PHONY: clean
clean: ## Remove what was built and what the demo left
	@cargo clean
	rm -rf .casemate
