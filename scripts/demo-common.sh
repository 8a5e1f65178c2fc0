# What the demos share; sourced by them. `demo` is the script's name for messages; gives `tierfs`, the program, and `work`, a directory that goes at the end.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tierfs=${TIERFS_BIN:-$here/target/release/tierfs}
PATH="$PATH:/usr/sbin:/sbin"
export LC_ALL=C

die() { printf '%s: %s\n' "$demo" "$*" >&2; exit 3; }
title() { printf '\n== %s\n' "$*"; }
# Shows a command and runs it; `at`: on which side, where there are several.
at=
run() { printf '%s$ %s\n' "$at" "${*/#$tierfs/tierfs}"; "$@"; }

[[ -x $tierfs ]] || die "$tierfs is missing: cargo build --release makes it"
[[ $(id -u) == 0 ]] || die "mounting needs root: run this as root"
[[ -c /dev/fuse ]] || die "/dev/fuse is missing: load the fuse module or pass the device in"

work=$(mktemp -d "${TMPDIR:-/tmp}/tierfs-demo.XXXXXX")

# Unmounts a share's filesystem, which a daemon may leave only now.
unmount_share() {
    if findmnt -n "$1" >/dev/null 2>&1; then
        umount "$1" 2>/dev/null || { sleep 1; umount "$1" || umount -l "$1"; }
    fi
}

# The end of a demo that has taken down what it started: shows the logs if it failed, removes the directory.
leave() {
    local code=$1
    shift
    if ((code != 0)); then
        printf '\n%s: failed; the end of the logs:\n' "$demo" >&2
        tail -n 15 "$@" >&2 2>/dev/null
    fi
    # Never delete through a mount that is still there.
    if findmnt -rn -o TARGET | grep -qF "$work/"; then
        printf '%s: something below %s is still mounted; left in place\n' "$demo" "$work" >&2
        ((code == 0)) && code=1
    else
        rm -rf --one-file-system "$work"
    fi
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
