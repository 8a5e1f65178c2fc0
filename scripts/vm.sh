#!/usr/bin/env bash
# Runs a command on another kernel: Debian's cloud kernel in qemu (software emulation, so slow), with this machine's files under a
# layer that is thrown away. For what this machine's kernel lacks, such as quotas.
# Usage: vm.sh COMMAND [ARGUMENT...]    Environment: VM_KERNEL=package (default: the newest cloud kernel), VM_MEMORY=4G, VM_SECONDS=900
# Exit status: the command's; 124 when the time is over. Needs root and Debian; the kernel is kept in ~/.cache/tierfs/vm.
set -euo pipefail

die() { printf 'vm: %s\n' "$*" >&2; exit 3; }
[[ $(id -u) == 0 ]] || die "this needs root: files of all users are shared with the machine"
(($#)) || die "which command?"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/tierfs/vm
memory=${VM_MEMORY:-4G}
mkdir -p "$cache"
work=$(mktemp -d /tmp/tierfs-vm-XXXXXX)
files=
trap 'if [[ -n $files ]]; then kill "$files" 2>/dev/null || true; fi; rm -rf "$work"' EXIT

packages=()
command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
[[ -x /bin/busybox ]] || packages+=(busybox-static)
command -v cpio >/dev/null || packages+=(cpio)
command -v xz >/dev/null || packages+=(xz-utils)
find_virtiofsd() { for file in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do if [[ -x $file ]]; then echo "$file"; break; fi; done; }
# Debian 12 has it in qemu-system-common, later ones in a package of its own.
if [[ -z $(find_virtiofsd) ]] && apt-cache show virtiofsd >/dev/null 2>&1; then packages+=(virtiofsd); fi
if ((${#packages[@]})); then
    echo "vm: installing from Debian: ${packages[*]}"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$work/apt.log" 2>&1 ||
        { tail "$work/apt.log" >&2; die "apt-get failed"; }
fi
virtiofsd=$(find_virtiofsd)
[[ -n $virtiofsd ]] || die "virtiofsd is missing"

# Debian's own lists for the suite and its backports, apart from the machine's, so that apt checks the signatures.
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
if ! compgen -G "$cache/linux-image-*.deb" >/dev/null || [[ -n ${VM_KERNEL:-} ]]; then
    mkdir -p "$work/lists/partial"
    printf 'deb http://deb.debian.org/debian %s main\n' "$release" "$release-backports" >"$work/sources.list"
    own=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$work/lists"
        -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=root)
    apt-get "${own[@]}" update -qq >"$work/apt.log" 2>&1 || { tail "$work/apt.log" >&2; die "apt-get update failed"; }
    kernel=${VM_KERNEL:-$(apt-cache "${own[@]}" pkgnames linux-image- | grep -E '^linux-image-[0-9].*[0-9]-cloud-amd64$' | sort -V | tail -n 1)}
    echo "vm: fetching $kernel"
    (cd "$work" && apt-get "${own[@]}" download -qq "$kernel") || die "the kernel $kernel could not be fetched"
    rm -f "$cache"/linux-image-*.deb
    mv "$work"/linux-image-*.deb "$cache/"
fi
dpkg-deb -x "$cache"/linux-image-*.deb "$work/kernel"

root=$work/initrd
mkdir -p "$root"/{bin,proc,sys,dev,new,lower,layer,modules}
cp /bin/busybox "$root/bin/"
# In the order in which they need each other; what is built in is not found, and not missed.
for module in loop overlay quota_tree quota_v2 libcrc32c xfs fuse virtiofs; do
    file=$(find "$work/kernel/lib/modules" -name "$module.ko*" -print -quit)
    case $file in
        *.xz) xz -dc "$file" >"$root/modules/$module.ko" ;;
        ?*) cp "$file" "$root/modules/$module.ko" ;;
    esac
done
printf '%q ' "$@" >"$root/command"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in loop overlay quota_tree quota_v2 libcrc32c xfs fuse virtiofs; do
    [ ! -e /modules/$module.ko ] || $b insmod /modules/$module.ko
done
$b mount -t virtiofs -o ro root /lower && $b mount -t tmpfs layer /layer && $b mkdir /layer/upper /layer/work &&
    $b mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /new || $b poweroff -f
for dir in proc sys dev; do $b mount --move /$dir /new/$dir; done
for dir in tmp run; do $b mount -t tmpfs $dir /new/$dir; done
$b ip link set lo up
$b cp /command /environment /new/run/
$b chroot /new /bin/bash -c '. /run/environment; eval "$(cat /run/command)"'
echo "vm: exit status $?"
$b poweroff -f
INIT
chmod +x "$root/init"
{
    echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    printf 'cd %q; export HOME=%q\n' "$PWD" "$HOME"
    # Those that steer tests.
    env -0 | { grep -zE '^(TIERFS_|RUST_|AWS_EC2_|CI=)' || true; } | while IFS= read -r -d '' variable; do printf 'export %q\n' "$variable"; done
} >"$root/environment"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd.gz"

"$virtiofsd" --socket-path="$work/socket" $([[ $virtiofsd == */libexec/* ]] && echo "--shared-dir=/ --sandbox=chroot" || echo "-o source=/ -o sandbox=chroot") >"$work/files.log" 2>&1 &
files=$!
for _ in $(seq 100); do [[ -S $work/socket ]] && break; sleep 0.05; done
# A plain CPU: emulation of newer features has bugs that crash kernels (CMPXCHG16B and flags in qemu 7.2).
status=0
timeout "${VM_SECONDS:-900}" qemu-system-x86_64 -M q35 -cpu Nehalem,-cx16 -smp 2 -m "$memory" \
    -object "memory-backend-memfd,id=memory,size=$memory,share=on" -numa node,memdev=memory \
    -chardev "socket,id=files,path=$work/socket" -device vhost-user-fs-pci,chardev=files,tag=root \
    -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd.gz" -append "console=ttyS0 quiet panic=-1" \
    -net none -display none -monitor none -serial stdio -no-reboot </dev/null 2>&1 | tr -d '\r' | tee "$work/console" || status=${PIPESTATUS[0]}
[[ $status != 124 ]] || die "the time of ${VM_SECONDS:-900} s is over"
ended=$(sed -n 's/^vm: exit status \([0-9]*\)$/\1/p' "$work/console")
[[ -n $ended ]] || die "the machine did not come to the end of the command (its console is above)"
exit "$ended"
