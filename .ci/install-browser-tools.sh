#!/usr/bin/env bash
# Installs what the browser and client tests need, and only what is missing:
#   Chromium                         the system's package (apt, dnf or brew)
#   gateway/tests/browser            the npm packages of package-lock.json
#   .tools/clients-venv              the wheels of gateway/tests/clients/requirements.txt
# Running it again costs a fraction of a second. Node.js (20.19 or newer) and Python (3.10 or newer) must be there.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=.ci/as-root.sh
. .ci/as-root.sh

fail() {
  echo "install-browser-tools: $*" >&2
  exit 1
}

chromium_there() {
  local path
  for path in "${CHROMIUM:-}" /usr/bin/chromium /usr/bin/chromium-browser /usr/bin/google-chrome \
    /Applications/Chromium.app/Contents/MacOS/Chromium "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
    if [ -n "$path" ] && [ -x "$path" ]; then return 0; fi
  done
  return 1
}

install_chromium() {
  if chromium_there; then return; fi
  echo "installing Chromium (CHROMIUM=executable spares it)"
  if command -v apt-get >/dev/null; then
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends chromium fonts-dejavu-core
  elif command -v dnf >/dev/null; then
    as_root dnf install -y chromium dejavu-sans-fonts
  elif command -v brew >/dev/null; then
    brew install --cask chromium
  else
    fail "no Chromium, and neither apt-get, dnf nor brew to install it with: install one and set CHROMIUM to its executable"
  fi
  chromium_there || fail "the package manager installed Chromium where this does not look: set CHROMIUM to its executable"
}

install_node_packages() {
  command -v npm >/dev/null || fail "npm is missing: install Node.js 20.19 or newer"
  node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' \
    || fail "Node.js $(node --version) is too old: 20.19 or newer is needed"
  local folder=gateway/tests/browser
  # npm writes this file at the end of an installation: it is as new as what is installed.
  if [ "$folder/node_modules/.package-lock.json" -nt "$folder/package-lock.json" ]; then return; fi
  npm ci --prefix "$folder" --no-audit --no-fund
}

install_python_packages() {
  command -v python3 >/dev/null || fail "python3 is missing: install Python 3.10 or newer"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$(python3 --version) is too old: 3.10 or newer is needed"
  local wanted=gateway/tests/clients/requirements.txt venv=.tools/clients-venv
  if cmp -s "$wanted" "$venv/installed.txt"; then return; fi
  python3 -m venv --clear "$venv" || fail "python3 cannot make a virtual environment: install its venv module (Debian: python3-venv)"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$wanted"
  cp "$wanted" "$venv/installed.txt"
}

install_chromium
install_node_packages
install_python_packages
