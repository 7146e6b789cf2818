# shellcheck shell=bash
# Sourced by the scripts of this folder: what they start, and whether it is theirs.
#
# The ports are fixed. Where somebody else's Redis or gateway holds one, ours ends at once, and everything would work:
# with theirs. So whoever starts something looks whether it lives, when it answers.

# must_live WHAT PID PORT: ends the script when it does not.
must_live() {
    kill -0 "$2" 2> /dev/null && return
    echo "$1 did not start: is port $3 in use, by another run of this kind?" >&2
    exit 2
}

# start_redis PORT DIR: sets redis_pid; without persistence.
start_redis() {
    redis-server --port "$1" --bind 127.0.0.1 --save '' --appendonly no --dir "$2" > "$2/redis.log" 2>&1 &
    redis_pid=$!
    for _ in $(seq 100); do
        # It says so once it has the port.
        grep -q 'Ready to accept connections' "$2/redis.log" && return
        kill -0 $redis_pid 2> /dev/null || break
        sleep 0.1
    done
    must_live Redis "$redis_pid" "$1"
}

# await_gateway BINARY INTERNAL_ADDRESS PID: until it is ready.
await_gateway() {
    for _ in $(seq 300); do
        if "$1" --healthcheck "$2" 2> /dev/null; then
            must_live "the gateway at $2" "$3" "${2##*:}"
            return
        fi
        kill -0 "$3" 2> /dev/null || break
        sleep 0.1
    done
    must_live "the gateway at $2" "$3" "${2##*:}"
    echo "the gateway at $2 did not become ready" >&2
    exit 2
}

# end_rig DIR [PID…]: ends these, in this order, then Redis; waits for them; removes DIR.
end_rig() {
    local dir=$1 pid
    shift
    [ $# = 0 ] || kill "$@" 2> /dev/null || true
    for pid in "$@"; do
        wait "$pid" 2> /dev/null || true
    done
    [ -z "${redis_pid:-}" ] || kill "$redis_pid" 2> /dev/null || true
    rm -rf "$dir"
}
