#!/usr/bin/env bash
# The main job on real input, start to end: a share is mounted, a real tree is unpacked into it, migrated to the built-in
# S3 endpoint, looked at, read back and compared byte for byte. Everything lives in one temporary directory; mounts,
# server and files are gone when it ends, however it ends. Usage: scripts/demo.sh (after cargo build --release)
set -euo pipefail

demo=demo
readonly want_mb=150 most_mb=300
# shellcheck source=scripts/demo-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo-common.sh"

mnt=$work/mnt share=$work/share objects=$work/objects
server=

cleanup() {
    local code=$?
    trap - EXIT INT TERM HUP
    set +e
    cd /
    if findmnt -n "$mnt" >/dev/null 2>&1; then
        "$tierfs" umount "$mnt" >/dev/null 2>&1 || "$tierfs" umount --lazy "$mnt" >/dev/null 2>&1 || umount -l "$mnt"
    fi
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null
        wait "$server" 2>/dev/null
    fi
    unmount_share "$share"
    leave "$code" "$work"/var/log/*.log "$work/server.log"
}

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }
rate() { awk -v n="$1" -v s="$2" 'BEGIN { if (s > 0) printf "%.1f", n / 1e6 / s; else printf "-" }'; }
human() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }
used() { df -B1 --output=used "$share" | tail -n 1 | tr -d ' '; }

# Names, kinds, sizes, times with nanoseconds, modes, owners: what must not change. Access times may.
attributes() { (cd "$1" && find . -name lost+found -prune -o -printf '%P %y %s %T@ %m %U %G %n\n' | sort) >"$2"; }
checksums() {
    (cd "$1" && find . -name lost+found -prune -o -type f -print0 | sort -z | xargs -0 -P 4 -n 64 sha256sum) |
        sort -k 2 >"$2"
}
same() { cmp -s "$1" "$2" || { diff "$1" "$2" | head -n 5 >&2 || true; die "$3 differ"; }; }

# --- a real tree: parts of what every machine with Rust has, 100 to 300 MB --------------------------------------------
sysroot=$(rustc --print sysroot 2>/dev/null || true)
sources=() total_mb=0
for base in "$sysroot/lib/rustlib/src/rust/library" "$sysroot/share/doc/rust/html" /usr/share/doc /usr/share; do
    [[ -d $base ]] || continue
    while read -r mb path; do
        ((mb > 0 && total_mb + mb <= most_mb && total_mb < want_mb)) || continue
        sources+=("$path")
        total_mb=$((total_mb + mb))
    done < <(find "$base" -mindepth 1 -maxdepth 1 -type d -print0 | xargs -0 -r du -sm 2>/dev/null | sort -rn | awk 'NR <= 40')
    ((total_mb < 100)) || break
done
((${#sources[@]})) || die "no tree of some size in $sysroot or /usr/share: rustup component add rust-docs brings one"
free_mb=$(df -m --output=avail "$work" | tail -n 1 | tr -d ' ')
((free_mb > total_mb * 4)) || die "$work has $free_mb MB free, $((total_mb * 4)) are needed: point TMPDIR elsewhere"

# --- a share with a filesystem of its own, so that free space shows -----------------------------------------------------
mkdir "$mnt" "$share" "$objects"
truncate -s "$((total_mb * 2 + 256))M" "$work/share.img"
own_filesystem=yes
if ! { mkfs.ext4 -q -F -m 0 "$work/share.img" && mount -o loop "$work/share.img" "$share"; } 2>/dev/null; then
    own_filesystem=no
    echo "(no loop device here: the share is a plain directory)"
fi

# --- the built-in endpoint, with keys that live as long as this script ------------------------------------------------
unset AWS_CA_BUNDLE AWS_PROFILE AWS_SESSION_TOKEN AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE
AWS_ACCESS_KEY_ID=demo$$
AWS_SECRET_ACCESS_KEY=$(od -An -N 20 -tx1 /dev/urandom | tr -d ' \n')
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
export TIERFS_CONFIG_DIR=$work/etc TIERFS_STATE_DIR=$work/var

title "the built-in S3 endpoint, a pair, a mount"
"$tierfs" dev-s3 "$objects" --listen 127.0.0.1:0 >"$work/server.out" 2>"$work/server.log" </dev/null &
server=$!
endpoint=
for _ in $(seq 100); do
    endpoint=$(sed -n 's/^listening on //p' "$work/server.out")
    [[ -z $endpoint ]] || break
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; die "the endpoint did not start"; }
    sleep 0.1
done
[[ -n $endpoint ]] || die "the endpoint did not say where it listens within 10 s"
run "$tierfs" pair add demo --local "east:$share" --remote west:s3://demo/east --endpoint "$endpoint"
run "$tierfs" mount "$share" "$mnt" --pair demo

title "a real tree of about $total_mb MB is unpacked into the mount"
printf '%s\n' "${sources[@]}"
mkdir "$mnt/tree"
for path in "${sources[@]}"; do
    tar -C "$(dirname "$path")" -cf - "$(basename "$path")" | tar -C "$mnt/tree" -xf -
done
attributes "$mnt/tree" "$work/attributes.before"
checksums "$mnt/tree" "$work/sums.before"
files=$(wc -l <"$work/sums.before")
bytes=$(awk '$(NF - 6) == "f" { sum += $(NF - 5) } END { printf "%d", sum }' "$work/attributes.before")
sync -f "$share"
used_before=$(used)

largest=$(cd "$mnt/tree" && find . -type f -printf '%s %P\n' | sort -rn | awk 'NR <= 3' | cut -d ' ' -f 2-)
one=$(head -n 1 <<<"$largest")
look() {
    (cd "$mnt/tree" && while read -r name; do ls -l --time-style=full-iso "$name"; done <<<"$largest")
    echo
    stat "$mnt/tree/$one" | sed -n '1,3p;6p'
    echo
    printf 'du:  %s\n' "$(du -sh "$mnt/tree" | cut -f 1)"
    [[ $own_filesystem == no ]] || printf 'df:  %s used on the share\n' "$(human "$(used)")"
    echo
    "$tierfs" status "$mnt/tree/$one"
    echo
    "$tierfs" status -r "$mnt/tree"
}

title "before"
look

title "migrate"
start=$(now)
run "$tierfs" migrate -r "$mnt/tree"
migrate_s=$(since "$start")
sync -f "$share"
used_after=$(used)

title "after: the same sizes and times, the blocks are gone"
look
attributes "$mnt/tree" "$work/attributes.after"
same "$work/attributes.before" "$work/attributes.after" "names, sizes, times, modes or owners before and after migration"
blocks_left=$(cd "$mnt/tree" && find . -type f -size +0 -printf '%b\n' | awk '{ sum += $1 * 512 } END { printf "%d", sum }')
((blocks_left * 10 < bytes)) || die "files still occupy $(human "$blocks_left") locally after migration"
echo "sizes, times, modes and owners of all $files files: equal"

title "read everything back through the mount and compare checksums"
start=$(now)
checksums "$mnt/tree" "$work/sums.after"
recall_s=$(since "$start")
same "$work/sums.before" "$work/sums.after" "checksums before migration and after reading back"
attributes "$mnt/tree" "$work/attributes.back"
same "$work/attributes.before" "$work/attributes.back" "names, sizes, times, modes or owners before and after reading back"
echo "sha256 of all $files files: equal"
"$tierfs" status -r "$mnt/tree"

title "who reads everything is served, and little is kept for him (docs/recalls.md): bring the rest back"
run "$tierfs" recall -r "$mnt/tree"
"$tierfs" status -r "$mnt/tree"

title "unmount"
run "$tierfs" umount "$mnt"
# Without tierfs in between: what was read back is in the share itself.
checksums "$share/tree" "$work/sums.below"
same "$work/sums.before" "$work/sums.below" "checksums through the mount and below it"

freed=$((used_before - used_after))
title "summary"
row() { printf '%-34s %s\n' "$1" "$2"; }
row "files" "$files"
row "content" "$(human "$bytes")"
row "migrated" "$(rate "$bytes" "$migrate_s") MB/s ($migrate_s s)"
row "read back and hashed (sha256)" "$(rate "$bytes" "$recall_s") MB/s ($recall_s s)"
row "local space freed by migration" "$(human "$freed")"
row "checksums, sizes, times" "equal"
