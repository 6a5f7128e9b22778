#!/bin/sh
# Configure Swift for one disk, when the image is built: three rings with one device, and a backend for each.
set -eu
cd /etc/swift
printf '[swift-hash]\nswift_hash_path_prefix = liverseg\nswift_hash_path_suffix = store\n' > swift.conf
port=6200
for kind in object container account; do
    sed "s/KIND/$kind/; s/PORT/$port/" backend.conf > "$kind-server.conf"
    swift-ring-builder "$kind.builder" create 8 1 1
    swift-ring-builder "$kind.builder" add "r1z1-127.0.0.1:$port/disk" 1
    swift-ring-builder "$kind.builder" rebalance
    rm -r "$kind.builder" backups
    port=$((port + 1))
done
