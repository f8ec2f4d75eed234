#!/bin/sh
# Check the steps of the Containerfile without a container engine: in a Debian 13 root made by debootstrap, as root.
# The server then runs as user 10001, without new privileges, in a root that cannot be written.
#
#   deploy/container/check.sh WORK_FOLDER BUNDLES [SIZE]
set -eu
work=$1 bundles=$2 size=${3:-serve}
here=$(cd "$(dirname "$0")/../.." && pwd)
root=$work/root
mkdir -p "$work"
debootstrap --variant=minbase trixie "$root" >"$work/debootstrap.log"
mkdir -p "$root/source" "$root/bundles"
git -C "$here" ls-files -z | tar -C "$here" --null --files-from - --create | tar -C "$root/source" --extract
# Settings of this machine for the package index, as an engine would get them from its own configuration.
for file in /etc/pip.conf /etc/xdg/pip /etc/ssl/certs /etc/resolv.conf ${EXTRA_FILES:-}; do
    [ ! -e "$file" ] || { mkdir -p "$root$(dirname "$file")" && cp -a --dereference "$file" "$root$(dirname "$file")/"; }
done
chroot "$root" sh /source/deploy/container/install.sh build "$size" >"$work/build.log" 2>&1
rm -rf "$root/source"
echo "the installed root has $(du -sm "$root" | cut -f1) MB, /opt/re4 $(du -sm "$root/opt/re4" | cut -f1) MB"
cat >"$work/run.sh" <<EOF
set -eu
mount --bind "$root" "$root"
mount --bind "$bundles" "$root/bundles"
mount --bind -o ro "$bundles" "$root/bundles"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind /dev "$root/dev"
mount -o remount,ro,bind "$root"
in_root() { chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set -all \
    env PATH=/opt/re4/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 "\$@"; }
in_root sh -c '! touch /opt/re4/x 2>/dev/null' || { echo "the root can be written"; exit 1; }
in_root re4 serve --bundles /bundles --address 127.0.0.1:8790 --health-address 127.0.0.1:8791 >"$work/serve.log" 2>&1 &
for second in \$(seq 60); do
    sleep 1
    if in_root re4 health --address 127.0.0.1:8791 2>/dev/null; then break; fi
done
in_root re4 health --address 127.0.0.1:8791
in_root re4 info --address 127.0.0.1:8790 --json >"$work/info.json"
EOF
unshare --mount --pid --fork --kill-child sh "$work/run.sh"
echo "the server answered as user 10001 in a read-only root; logs in $work"
