#!/bin/sh
# Configure Swift for one disk: three rings with one device, and a backend for each. Without variables, as in the
# image that is being built; or for folders, a user and four ports (SWIFT_PORT is the first) of someone's own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=${SWIFT_DIR:-/etc/swift}
port=${SWIFT_PORT:-6200}
mkdir -p "$dir"
cd "$dir"
printf '[swift-hash]\nswift_hash_path_prefix = liverseg\nswift_hash_path_suffix = store\n' > swift.conf
for kind in object container account; do
    sed "s|KIND|$kind|; s|PORT|$port|; s|DIR|$dir|; s|USER|${SWIFT_USER:-swift}|
        s|DISKS|${SWIFT_DISKS:-/srv/node}|; s|CACHE|${SWIFT_CACHE:-/var/cache/swift}|" \
        "$here/backend.conf" > "$kind-server.conf"
    swift-ring-builder "$kind.builder" create 8 1 1 &&
        swift-ring-builder "$kind.builder" add "r1z1-127.0.0.1:$port/disk" 1 &&
        swift-ring-builder "$kind.builder" rebalance &
    port=$((port + 1))
done
wait
rm -r ./*.builder backups
test -s object.ring.gz && test -s container.ring.gz && test -s account.ring.gz
