#!/usr/bin/env bash
# Makes sure that there is valgrind, whose callgrind counts the instructions of the benchmarks.
set -euo pipefail

# shellcheck source=.ci/as-root.sh
. "$(dirname "${BASH_SOURCE[0]}")/as-root.sh"

if command -v valgrind > /dev/null; then
    exit 0
fi

echo "installing valgrind, which counts the instructions of the benchmarks"
if command -v apt-get > /dev/null; then
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 valgrind libc6-dbg
elif command -v dnf > /dev/null; then
    as_root dnf install -y -q valgrind
else
    echo "there is no valgrind, and none of apt-get and dnf to install it with: put it on the PATH, then try again" >&2
    exit 1
fi
