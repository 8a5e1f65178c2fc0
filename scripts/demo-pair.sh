#!/usr/bin/env bash
# Two clusters on one machine: two shares, two mounts with gateways, one pair. What a user makes on east appears on west, is read on both, moves
# to west and comes back, also when west goes away in between. Everything lives in one temporary directory, and is gone when it
# ends, however it ends. Usage: scripts/demo-pair.sh (after cargo build --release)
set -euo pipefail

demo=demo-pair
# shellcheck source=scripts/demo-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo-common.sh"

cleanup() {
    local code=$? side
    trap - EXIT INT TERM HUP
    set +e
    cd /
    for side in east west; do
        if findmnt -n "$work/$side/mnt" >/dev/null 2>&1; then
            on $side "$tierfs" umount "$work/$side/mnt" >/dev/null 2>&1 || umount -l "$work/$side/mnt"
        fi
    done
    for side in east west; do unmount_share "$work/$side/$side"; done
    leave "$code" "$work"/*/var/log/*.log
}

# A command as the administrator of one side.
on() {
    local side=$1
    shift
    TIERFS_CONFIG_DIR=$work/$side/etc TIERFS_STATE_DIR=$work/$side/var "$@"
}
told() {
    at=$1
    shift
    local code=0
    on "$at" run "$@" || code=$?
    at=
    return "$code"
}
secret() { od -An -N 20 -tx1 /dev/urandom | tr -d ' \n'; }
# Waits up to 20 s.
until_() {
    local what=$1 _
    shift
    for _ in $(seq 200); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    die "$what: not within 20 s"
}
state() { getfattr --only-values -n user.tierfs.state "$1" 2>/dev/null; }
is() { [[ $(state "$1") == "$2" ]]; }
same_stat() {
    local format='%s bytes, %y, mode %a, owner %u:%g'
    [[ $(stat -c "$format" "$work/east/mnt/$1") == $(stat -c "$format" "$work/west/mnt/$1") ]]
}
both() {
    printf '%-6s %s\n' east "$(stat -c '%s bytes, %y, mode %a, owner %u:%g' "$work/east/mnt/$1")   $(state "$work/east/mnt/$1")"
    printf '%-6s %s\n' west "$(stat -c '%s bytes, %y, mode %a, owner %u:%g' "$work/west/mnt/$1")   $(state "$work/west/mnt/$1")"
    until_ "equal attributes of $1 on both sides" same_stat "$1"
}

unset AWS_CA_BUNDLE AWS_PROFILE AWS_SESSION_TOKEN AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
export AWS_EC2_METADATA_DISABLED=true

title "two shares, each with a filesystem of its own"
for side in east west; do
    mkdir -p "$work/$side"/{etc,var,mnt,"$side"}
    truncate -s 256M "$work/$side/share.img"
    mkfs.ext4 -q -F -m 0 "$work/$side/share.img"
    mount -o loop "$work/$side/share.img" "$work/$side/$side" || die "loop devices are needed"
    rmdir "$work/$side/$side/lost+found"
done
findmnt -rn -o TARGET,FSTYPE | grep -F "$work/"

title "each side has a key for the other's tiering service, and its half of the pair"
# $1 grants $2 a key.
grant() {
    local key
    key=$(secret)
    (umask 077
    printf '[[identity]]\naccess_key = "%s-tierfs"\nsecret_key = "%s"\nrole = "peer"\npair = "gp"\n' "$2" "$key" >"$work/$1/etc/identities.toml"
    printf '[default]\naws_access_key_id = %s-tierfs\naws_secret_access_key = %s\n' "$2" "$key" >"$work/$2/$1.keys")
}
grant west east
grant east west
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
east_port=$(port) west_port=$(port)
told east "$tierfs" pair add gp --local "east:$work/east/east" --remote west:s3://west --role gpeer --meta-sync master \
    --endpoint "http://127.0.0.1:$west_port" --credentials-file "$work/east/west.keys" --no-probe
told east "$tierfs" mount "$work/east/east" "$work/east/mnt" -o "gateway=127.0.0.1:$east_port"
told west "$tierfs" pair add gp --local "west:$work/west/west" --remote east:s3://east --role gpeer --meta-sync slave \
    --endpoint "http://127.0.0.1:$east_port" --credentials-file "$work/west/east.keys"
told west "$tierfs" mount "$work/west/west" "$work/west/mnt" -o "gateway=127.0.0.1:$west_port"
told east "$tierfs" pair list

title "a file is made on east, and appears on west"
mkdir "$work/east/mnt/project"
head -c 5000000 /dev/urandom >"$work/east/mnt/project/data"
printf 'first line\n' >"$work/east/mnt/project/notes.txt"
chmod 640 "$work/east/mnt/project/notes.txt"
sum=$(sha256sum <"$work/east/mnt/project/data")
until_ "project/notes.txt on west" test -e "$work/west/mnt/project/notes.txt"
until_ "project/data on west" test -e "$work/west/mnt/project/data"
both project/data
both project/notes.txt
told west cat "$work/west/mnt/project/notes.txt"
echo "(who reads all of a file has it: west owns notes.txt now)"
until_ "notes.txt to be west's" is "$work/west/mnt/project/notes.txt" resident

title "migrate: west has the content, east a stub; names and attributes are on both"
until_ "what was read on west is closed" on east "$tierfs" migrate "$work/east/mnt/project/data" "$work/east/mnt/project/notes.txt"
told east "$tierfs" status "$work/east/mnt/project/data"
both project/data
[[ $(sha256sum <"$work/west/mnt/project/data") == "$sum" ]] || die "west's content is another"
echo "sha256 on west: equal"

title "somebody edits on east: the content comes back first"
printf 'second line\n' >>"$work/east/mnt/project/notes.txt"
until_ "the change on west" same_stat project/notes.txt
both project/notes.txt
told east cat "$work/east/mnt/project/notes.txt"

title "west goes away: what is on east goes on, a migration fails and changes nothing"
until_ "west's files to be closed" on west "$tierfs" umount "$work/west/mnt"
printf 'third line\n' >>"$work/east/mnt/project/notes.txt"
printf 'made meanwhile\n' >"$work/east/mnt/project/later.txt"
if told east "$tierfs" migrate "$work/east/mnt/project/notes.txt"; then die "a migration to nowhere succeeded"; fi
told east "$tierfs" sync status "$work/east/mnt" || true
cat "$work/east/mnt/project/notes.txt"

title "west is back: what it missed comes, and the migration succeeds"
told west "$tierfs" mount "$work/west/west" "$work/west/mnt" -o "gateway=127.0.0.1:$west_port"
until_ "project/later.txt on west" test -e "$work/west/mnt/project/later.txt"
until_ "a migration" on east "$tierfs" migrate "$work/east/mnt/project/notes.txt"
both project/notes.txt
both project/later.txt
told west cat "$work/west/mnt/project/notes.txt"
[[ $(sha256sum <"$work/east/mnt/project/data") == "$sum" ]] || die "the content that east reads is another"
until_ "what was read to be east's" is "$work/east/mnt/project/data" resident

title "both sides agree"
told east "$tierfs" check -r "$work/east/mnt"
told west "$tierfs" check -r "$work/west/mnt"
