# Two commands matter: `make demo` shows the main job, `make test` proves it. Both install what is missing first.

CARGO ?= cargo
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
.DEFAULT_GOAL := help
.PHONY: help deps demo demo-pair test explore fuzz sim rounds pairs-rounds crash known quota rebuild storm soak bench bench-recall bench-index fmt lint

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

deps: ## Install what is missing on Debian 12 or 13
	@scripts/install-deps.sh test

demo: ## Build, then mount, migrate and read back a real tree (under two minutes after the build)
	@scripts/install-deps.sh demo
	@$(CARGO) build --locked --release
	@scripts/demo.sh

demo-pair: ## Build, then two clusters on one machine: a pair, names on both sides, content that moves, an outage
	@scripts/install-deps.sh demo
	@$(CARGO) build --locked --release
	@scripts/demo-pair.sh

test: ## Install what is missing, check format and lints, run all tests
	@scripts/install-deps.sh test
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    $(CARGO) deny --offline check licenses bans sources; \
	else echo "cargo-deny is not installed: licences and sources not checked"; fi
	$(CARGO) nextest run --locked --profile $(if $(CI),ci,default)

explore: ## Explore one file's protocol, and that of two clusters, exhaustively, within large bounds (EXPLORE_STATES=N a world, EXPLORE_WORLD=NAME, EXPLORE=explore|pairs_explore)
	$(CARGO) test --locked --config 'profile.dev.package.tierfs.opt-level=3' --test $(or $(EXPLORE),explore --test pairs_explore) -- --ignored --nocapture

fuzz: ## Feed decoders and the S3 client with what is nearly right (SECONDS=60 each of a dozen parts, SEED=4 to begin with)
	TIERFS_FUZZ_SECONDS=$(or $(SECONDS),60) $(if $(SEED),TIERFS_FUZZ_SEED=$(SEED)) \
	    $(CARGO) test --locked --test fuzz -- --nocapture --test-threads=2

sim: ## The engine on a simulated share, store and clock, by dice (SCHEDULES=100000, SECONDS=, FIRST=seed; SEED= one; SCRIPT=name, or empty for all: SEEDS=4 TWICE=1)
	$(if $(SEED),SIM_SEED=$(SEED)) $(if $(FIRST),SIM_FIRST=$(FIRST)) $(if $(SCHEDULES),SIM_SCHEDULES=$(SCHEDULES)) \
	    $(if $(SECONDS),SIM_SECONDS=$(SECONDS)) $(if $(filter undefined,$(origin SCRIPT)),,SIM_SCRIPT='$(SCRIPT)') \
	    $(if $(SEEDS),SIM_SEEDS=$(SEEDS)) $(if $(TWICE),SIM_TWICE=1) \
	    $(CARGO) test --locked --config 'profile.dev.package.tierfs.opt-level=3' --test sim -- --ignored --exact --nocapture tests::at_length

rounds: ## Random opens, maps, reads and writes of one file while it comes and goes (ROUNDS=100000 SEED=...)
	@scripts/install-deps.sh test
	$(if $(ROUNDS),TIERFS_ROUNDS=$(ROUNDS)) $(if $(SEED),TIERFS_SEED=$(SEED)) \
	    $(CARGO) test --locked --test mount -- --ignored --exact --nocapture rounds::many

pairs-rounds: ## Two clusters, users on both, a link that is cut, slowed and healed: round after round (ROUNDS=200 SEED=...)
	@scripts/install-deps.sh test
	$(if $(ROUNDS),TIERFS_ROUNDS=$(ROUNDS)) $(if $(SEED),TIERFS_SEED=$(SEED)) \
	    $(CARGO) test --locked --test pairs -- --ignored --exact --nocapture rounds::many

crash: ## Kill the daemon and cut the power, round after round (ROUNDS=500 a kind, SEED=, KIND=points|kill|shutdown|disk, FS=ext4|xfs)
	@scripts/install-deps.sh test
	CRASH_ROUNDS=$(ROUNDS) CRASH_SEED=$(SEED) CRASH_KIND=$(KIND) CRASH_FS=$(FS) \
	    $(CARGO) test --locked --test crash -- --ignored --exact --nocapture campaign::many

known: ## Memory and descriptors of the daemon for a million known inodes (KNOWN=1000000)
	@scripts/install-deps.sh test
	$(if $(KNOWN),TIERFS_KNOWN=$(KNOWN)) $(CARGO) test --locked --test mount -- --ignored --exact --nocapture known::a_million

rebuild: ## A share is lost and made again from the bucket, every attribute and byte compared (FILES=100000); prints rates
	@scripts/install-deps.sh test
	$(if $(FILES),TIERFS_FILES=$(FILES)) $(CARGO) test --locked --test mount -- --ignored --exact --nocapture rebuild::many

storm: ## One user's single recalls while another's `grep -r` goes over 10,000 stubs, against an idle mount: p50, p99 (WRITE=1 updates docs/recalls.md, BENCH_ARGS="--stubs 20000 --jobs 8 --options recall_scan=off")
	@scripts/install-deps.sh test
	$(CARGO) bench --locked --bench recall -- --storm $(if $(WRITE),--write) $(BENCH_ARGS)

quota: ## Quotas of ext4 and XFS act on the right user and project, and begin policies, on Debian's kernel in qemu (which it fetches; a few minutes)
	@scripts/install-deps.sh test
	$(CARGO) test --locked --no-run --test mount --test share_gateway
	@for name in mount share_gateway; do \
	    binary=$$($(CARGO) test --locked --no-run --test $$name --message-format=json 2>/dev/null | \
	        sed -n "s/.*\"name\":\"$$name\".*\"executable\":\"\([^\"]*\)\".*/\1/p"); \
	    TIERFS_NEED_QUOTA=1 CI=true scripts/vm.sh "$$binary" quota --nocapture --test-threads=1 || exit; \
	done

soak: ## Suites and random work on files that move, at length (SOAK_SECONDS=60 a part, SOAK_SEED, SOAK=fsx|exerciser|programs|stress_ng, SOAK_PROFILES=mapped,large of fsx)
	@scripts/install-deps.sh soak
	@seed=$${SOAK_SEED:-$$(date +%s)}; echo "SOAK_SEED=$$seed"; SOAK_SEED=$$seed \
	    $(CARGO) nextest run --locked --profile soak --run-ignored only --no-capture -E 'binary(suites) & test(soak_$(SOAK))'

bench: ## Measure against the lower filesystem and rclone, then as bench-recall does (WRITE=1 updates docs, QUICK=1 takes two minutes)
	@scripts/install-deps.sh bench
	$(CARGO) bench --locked --bench compare -- $(if $(WRITE),--write) $(if $(QUICK),--quick) $(BENCH_ARGS)
	$(CARGO) bench --locked --bench recall -- $(if $(WRITE),--write) $(if $(QUICK),--quick)

bench-recall: ## Measure reads of what is remote, against rclone mount, s3fs and bare GETs (WRITE=1 updates docs/recall.md, QUICK=1)
	@scripts/install-deps.sh bench
	$(CARGO) bench --locked --bench recall -- $(if $(WRITE),--write) $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-index: ## The index: scans against find(1), events, policies, bytes a row (FILES=1000000)
	@scripts/install-deps.sh test
	$(CARGO) bench --locked --bench index -- $(if $(FILES),--files $(FILES))

fmt: ## Format the source
	$(CARGO) fmt

lint: ## Format check and lints only
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
