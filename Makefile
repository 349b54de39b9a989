# Thin: everything real is in cargo and xtask. `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/sh
ifneq ($(VHIVE_FIRECRACKER),)
# Every test runs in a directory of its own.
override VHIVE_FIRECRACKER := $(abspath $(VHIVE_FIRECRACKER))
export VHIVE_FIRECRACKER
endif
# What sudo is to let through, where it is set.
PASSED = $(foreach name,VHIVE_REQUIRE VHIVE_FIRECRACKER VHIVE_SEED VHIVE_ALL VHIVE_BENCH_FUNCTIONS,$(if $($(name)),$(name)='$($(name))'))
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo env PATH=$$PATH $(PASSED)")
XTASK = cargo run --quiet --release --package xtask --

.PHONY: demo test bench clean setup-demo setup-test setup-bench

demo: setup-demo
	@cargo build --release --package vhive --package xtask
	@$(SUDO) target/release/xtask demo

test: setup-test
	@$(SUDO) cargo run --quiet --package xtask -- test

bench: setup-bench
	@$(SUDO) $(XTASK) bench $(BENCH)

# Removes what the project made on the host (mounts, namespaces, firewall rules, cgroups, state of the demo), then the build.
clean:
	@if [ -x target/release/vhive ]; then $(SUDO) target/release/xtask clean; fi
	@$(SUDO) rm -rf target functions/target guest/vhive-init/target guest/nano/target

setup-demo:
	@scripts/host-packages build demo
setup-test:
	@scripts/host-packages build demo test
setup-bench:
	@scripts/host-packages build demo bench
