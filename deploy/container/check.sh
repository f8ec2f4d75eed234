#!/bin/sh
# Check the steps of the Containerfile without a container engine, as root: its two stages are Debian 13 roots made by
# debootstrap. The server then runs as user 10001, without capabilities, in a root that cannot be written; with
# SIZE=cpu, a synthetic log is prepared, trained and exported there first.
#
#   deploy/container/check.sh WORK_FOLDER BUNDLES          SIZE=serve, with the versions in BUNDLES
#   deploy/container/check.sh WORK_FOLDER EMPTY_FOLDER cpu SIZE=cpu, which writes its files into EMPTY_FOLDER
set -eu
work=$1 bundles=$2 size=${3:-serve}
here=$(cd "$(dirname "$0")/../.." && pwd)
build=$work/build root=$work/root
mkdir -p "$work"
debootstrap --variant=minbase trixie "$build" >"$work/debootstrap.log"
# Settings of this machine for the package index, as an engine would get them from its own configuration.
for file in /etc/pip.conf /etc/xdg/pip /etc/ssl/certs /etc/resolv.conf ${EXTRA_FILES:-}; do
    [ ! -e "$file" ] || { mkdir -p "$build$(dirname "$file")" && cp -a --dereference "$file" "$build$(dirname "$file")/"; }
done
cp -a "$build" "$root"
mkdir -p "$build/source" "$root/bundles"
git -C "$here" ls-files -z | tar -C "$here" --null --files-from - --create | tar -C "$build/source" --extract
chroot "$build" sh /source/deploy/container/install.sh build "$size" >"$work/build.log" 2>&1
cp "$here/deploy/container/install.sh" "$root/tmp/install.sh"
chroot "$root" sh /tmp/install.sh system "$size" >"$work/system.log" 2>&1
rm "$root/tmp/install.sh"
mv "$build/opt/re4" "$root/opt/re4"
rm -rf "$build"
echo "the image's root has $(du -sm "$root" | cut -f1) MB, /opt/re4 $(du -sm "$root/opt/re4" | cut -f1) MB"
served=/bundles
if [ "$size" != serve ]; then
    served=/bundles/bundles
    chown 10001:10001 "$bundles"
fi
cat >"$work/run.sh" <<EOF
set -eu
mount --bind "$root" "$root"
mount --bind "$bundles" "$root/bundles"
[ "$size" != serve ] || mount --bind -o ro "$bundles" "$root/bundles"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind /dev "$root/dev"
mount -o remount,ro,bind "$root"
in_root() { chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set -all \
    env -i PATH=/opt/re4/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/tmp/cache HOME=/ "\$@"; }
in_root sh -c '! touch /opt/re4/x 2>/dev/null' || { echo "the root can be written"; exit 1; }
if [ "$size" != serve ]; then
    in_root sh -euc 'cd /bundles
        re4 bench events --out log.parquet --num-events 20000 --num-items 1000
        re4 data prepare --events log.parquet --out data
        re4 train data --out run --num-epochs 2 --no-compare
        re4 evaluate run
        re4 export run --bundles bundles' >"$work/train.log" 2>&1 || { tail -n 5 "$work/train.log"; exit 1; }
fi
in_root re4 serve --bundles $served --address 127.0.0.1:8790 --health-address 127.0.0.1:8791 >"$work/serve.log" 2>&1 &
for second in \$(seq 60); do
    sleep 1
    if in_root re4 health --address 127.0.0.1:8791 2>/dev/null; then break; fi
done
in_root re4 health --address 127.0.0.1:8791
in_root re4 info --address 127.0.0.1:8790 --json >"$work/info.json"
EOF
unshare --mount --pid --fork --kill-child sh "$work/run.sh"
echo "the server answered as user 10001 in a read-only root; logs in $work"
