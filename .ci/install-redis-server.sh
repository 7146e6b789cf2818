#!/usr/bin/env bash
# Makes sure that there is a redis-server of version 7 or newer, which the tests start themselves.
set -euo pipefail

# shellcheck source=.ci/as-root.sh
. "$(dirname "${BASH_SOURCE[0]}")/as-root.sh"

readonly MAJOR_MIN=7

# Prints the major version of a server, or nothing when it is not there.
major_of() {
    command -v "$1" > /dev/null || return 0
    "$1" --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p'
}

installed() {
    local major
    major=$(major_of redis-server)
    [ -n "$major" ] && [ "$major" -ge "$MAJOR_MIN" ]
}

if installed; then
    exit 0
fi

echo "installing redis-server, which the tests start on ports of their own"
if command -v apt-get > /dev/null; then
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 redis-server
elif command -v dnf > /dev/null; then
    as_root dnf install -y -q redis || as_root dnf install -y -q valkey-compat-redis
elif command -v brew > /dev/null; then
    brew install redis
else
    echo "there is no redis-server, and none of apt-get, dnf and brew to install it with:" >&2
    echo "install Redis $MAJOR_MIN or newer so that redis-server is on the PATH, then try again" >&2
    exit 1
fi

if ! installed; then
    found=$(major_of redis-server)
    echo "the tests need redis-server $MAJOR_MIN or newer on the PATH; found: ${found:-none}." >&2
    echo "Your distribution's package is too old: install it from https://redis.io/downloads or use Valkey" >&2
    exit 1
fi
