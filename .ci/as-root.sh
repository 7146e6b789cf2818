# shellcheck shell=bash
# Sourced by the install scripts of this folder.

# as_root COMMAND…: runs it as root; where that is not possible, says what to run and ends the script.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        echo "this needs root, and there is no sudo: run '$*' as root, then try again" >&2
        exit 1
    fi
}
