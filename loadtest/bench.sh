#!/usr/bin/env bash
# One scenario of the load tester against a gateway and a Redis of its own, on ports of their own; what it starts, it
# ends. Usage: loadtest/bench.sh SCENARIO target/release [OPTION…]
#   accept    handshakes on the embedded backplane, beside the floor
#   connect   handshakes with Redis, beside the floor
#   steady    10 events per second to 10,000 sockets, beside the floor, alternating
#   fanout    steady, then 100 events per second, then as many as the slowest client takes with 32 on their way
#   storm     10,000 clients drop and come again at once
#   slow      100 events per second while a tenth of the clients reads a byte a second; what they add to the memory
#   most      19,000 sockets on one node, through three heartbeats
#   soak      3,000 clients that come and go, half an hour
# RUNS=5 alternating rounds, SOCKETS=10000 (most: 19000) and SECONDS_EACH=20 can be set. Options go to the load tester.
set -euo pipefail
# shellcheck source=loadtest/rig.sh
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"

readonly scenario=$1 bin=$2
shift 2
# A process may have 20,000 descriptors where nobody has raised that.
[ "$scenario" != most ] || SOCKETS=${SOCKETS:-19000}
readonly sockets=${SOCKETS:-10000} runs=${RUNS:-5} seconds=${SECONDS_EACH:-20}
readonly redis_port=7409 public=127.0.0.1:7410 internal=127.0.0.1:7411
dir=$(mktemp -d)
redis_pid='' gateway_pid=''

# shellcheck disable=SC2329 # the trap calls it
finish() { end_rig "$dir" ${gateway_pid:+"$gateway_pid"}; }
trap finish EXIT
trap 'exit 130' INT TERM

start_redis $redis_port "$dir"
# What a handshake costs without Redis is measured without it.
backplane=redis://127.0.0.1:$redis_port
[ "$scenario" != accept ] || backplane=''
REDIS_URL=$backplane GATEWAY_LISTEN=$public GATEWAY_INTERNAL_LISTEN=$internal \
    GATEWAY_DRAIN_DELAY=0 GATEWAY_DRAIN_WINDOW=1s GATEWAY_LOG=warn ${GATEWAY_RUN:-} "$bin/gateway" &
gateway_pid=$!
await_gateway "$bin/gateway" "$internal" "$gateway_pid"

# $1: the scenario; the rest: options.
loadtest() {
    local name=$1
    shift
    "$bin/loadtest" "$name" --url "ws://$public/ws/analytics" --metrics "http://$internal/metrics" \
        --pid "$gateway_pid" --connections "$sockets" --rate 4000/s --duration "${seconds}s" "$@"
}

readonly redis=redis://127.0.0.1:$redis_port
code=0
case $scenario in
    accept)
        loadtest connect --floor --runs "$runs" --max-handshake-ratio 1.6 "$@" || code=$?
        ;;
    connect)
        # 15 us more for the question to Redis, at a floor of 23.
        loadtest connect --floor --runs "$runs" --max-handshake-ratio 2.25 "$@" || code=$?
        ;;
    steady)
        loadtest fanout --redis $redis --events-per-second 10 --floor --runs "$runs" --max-cpu-ratio 1.15 \
            --max-lost 0 "$@" || code=$?
        ;;
    fanout)
        echo '=== 10 events per second, beside the floor'
        loadtest fanout --redis $redis --events-per-second 10 --floor --runs "$runs" --max-cpu-ratio 1.15 \
            --max-lost 0 "$@" || code=$?
        echo '=== 100 events per second'
        loadtest fanout --redis $redis --events-per-second 100 --first-number 1000001 --max-lost 0 --max-p99 350ms \
            --max-cpu-us-per-message 0.8 "$@" || code=$?
        echo '=== 32 events on their way, as many as the slowest client takes'
        loadtest fanout --redis $redis --in-flight 32 --first-number 2000001 --max-lost 0 --max-p99 500ms \
            --min-deliveries 1500000/s "$@" || code=$?
        ;;
    storm)
        loadtest storm --min-returns 8000/s --max-state-gap 6s "$@" || code=$?
        ;;
    slow)
        # All outboxes together, and 2 KiB for each that exists (docs/OPERATIONS.md, GATEWAY_OUTBOX_TOTAL_BYTES).
        bound=$(((64 << 20) + sockets * 2048 / 10))
        loadtest slow --redis $redis --events-per-second 100 --runs "$runs" --max-p99-ratio 1.15 --max-lost 0 \
            --max-slow-bytes $bound "$@" || code=$?
        ;;
    most)
        # Three pings come within 92 s, and at least 18 snapshots to each.
        loadtest idle --processes 0 --duration 95s --min-pings 3 --min-updates 18 --max-state-gap 6s "$@" || code=$?
        ;;
    soak)
        loadtest soak --redis $redis --events-per-second 10 --connections 3000 --rate 500/s --duration 30m \
            --max-lost 0 "$@" || code=$?
        ;;
    *)
        echo "no scenario $scenario" >&2
        code=2
        ;;
esac
exit "$code"
