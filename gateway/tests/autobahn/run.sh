#!/usr/bin/env bash
# Autobahn's protocol cases against examples/echo.rs, which stands on the gateway's own socket layer.
#
# The cases are run by kosoku, a port of the suite that installs from PyPI. Left out are 9.* (throughput of messages of
# megabytes; this gateway takes 4 KiB) and 12.*, 13.* (permessage-deflate, which it does not offer).
# Not strictly required behaviour (NON-STRICT, INFORMATIONAL) counts as passed and is named.
# The last line is "N passed, M failed"; the exit code is 0 only when none failed.
set -euo pipefail
cd "$(dirname "$0")/../../.."

venv=.tools/kosoku-venv
requirements=gateway/tests/autobahn/requirements.txt
if ! cmp -s "$requirements" "$venv/.installed"; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/.installed"
fi

"${CARGO:-cargo}" build --quiet --locked -p gateway --example echo
out=$(mktemp -d)
server=
cleanup() {
    if [[ -n $server ]]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$out"
}
trap cleanup EXIT

# The server prints the address that it got, so no port can be taken already. Opening the pipe for reading waits for it.
mkfifo "$out/address"
"${CARGO_TARGET_DIR:-target}/debug/examples/echo" >"$out/address" &
server=$!
read -r -t 10 address <"$out/address"

# Its exit code says the same as the report, which is judged below.
timeout 300 "$venv/bin/kosoku" -p 4 -x '9.*' -x '12.*' -x '13.*' -o "$out/report" "ws://$address" || true
kill -0 "$server" || { echo 'the server did not survive' >&2; exit 1; }
"$venv/bin/python" gateway/tests/autobahn/summary.py "$out/report/index.json"
