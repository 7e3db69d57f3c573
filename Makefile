# SPDX-License-Identifier: GPL-2.0
#
# The front door: every command a person needs. See README.md.

# What is said here is for the scripts, and not for the makefiles that they call.
MAKEOVERRIDES =
BUILD ?= build

PHONY := help demo demo-linux check tree refresh series lint mutants soak bench docs headers shell

help:
	@echo 'make demo     from nothing to a kernel that converts memory in front of you'
	@echo 'make demo-linux ARCH=arm64    and to Linux in memory that the host cannot reach'
	@echo 'make check    all tests; last line "N passed, N failed, N skipped"'
	@echo 'make lint     checkpatch, sparse, coccinelle, W=1, shellcheck'
	@echo 'make mutants  break the kernel on purpose, and see the tests notice'
	@echo 'make soak     race conversions against everything else, a million operations'
	@echo 'make bench    what conversions cost, in instructions, compared with what is recorded'
	@echo 'make tree     base + whole files + patches -> a git tree in build/tree'
	@echo 'make refresh  commits of that tree -> patches/ and whole files'
	@echo 'make series   the series as mails in build/series, checked with git am'
	@echo 'make headers  the user headers of the patched kernel, in build/headers*/include'
	@echo 'make docs     the HTML documentation of what the series touches'
	@echo 'make shell    a shell in the booted kernel'
	@echo
	@echo 'ARCH=arm64 does it for arm64, else x86_64; make check is for both by default.'
	@echo 'BASE=/path/to/linux uses a kernel tree of yours, any 7.3.y.'
	@echo 'lab/run PROGRAM runs a static program in the booted kernel: lab/run --help.'

demo:
	@scripts/demo

demo-linux:
	@scripts/demo linux

check:
	@scripts/check

lint:
	@scripts/lint

mutants:
	@scripts/mutants

soak:
	@scripts/soak

bench:
	@scripts/bench

tree:
	@scripts/tree

refresh:
	@scripts/refresh

series:
	@scripts/series

headers:
	@scripts/headers

docs:
	@scripts/docs

shell:
	@lab/run --shell

.PHONY: $(PHONY)
