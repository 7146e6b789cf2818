#!/usr/bin/env bash
# Makes sure that there is a valkey-server, for the suites that run against it instead of redis-server.
set -euo pipefail

# shellcheck source=.ci/as-root.sh
. "$(dirname "${BASH_SOURCE[0]}")/as-root.sh"

if command -v valkey-server > /dev/null; then
    exit 0
fi

if ! command -v apt-get > /dev/null; then
    echo "there is no valkey-server: install Valkey 8 or newer so that it is on the PATH, then try again" >&2
    exit 1
fi

as_root apt-get update -qq
# Debian's stable release of 2023 has it in its backports, if the machine looks there.
if [ -z "$(apt-cache madison valkey-server)" ]; then
    echo "there is no valkey-server, and apt-get has no such package (Debian 13 and" >&2
    echo "the backports of Debian 12 have it): install Valkey 8 or newer so that it is on the PATH, then try again" >&2
    exit 1
fi
echo "installing valkey-server, which the tests start on ports of their own"
as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 valkey-server
