#!/usr/bin/env bash
# What an idle socket costs: the same node with 2,000 and with 10,000 sockets of distinct addresses, on a Redis of its
# own, at the protocol's intervals. Prints the slope of resident memory between the two after three pings, and again
# after ten minutes, the CPU used meanwhile, and the audit. Usage: loadtest/idle.sh target/release
set -euo pipefail

readonly bin=$1 redis_port=7399 public=127.0.0.1:7400 internal=127.0.0.1:7401
readonly few=2000 many=10000 rate=1000 three_pings=95
dir=$(mktemp -d)
redis_pid='' gateway_pid=''

finish() {
    [ -z "$gateway_pid" ] || kill "$gateway_pid" 2> /dev/null || true
    [ -z "$redis_pid" ] || kill "$redis_pid" 2> /dev/null || true
    rm -rf "$dir"
}
trap finish EXIT

rss_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$gateway_pid/status"; }
# utime + stime, in ticks of 1/100 s.
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$gateway_pid/stat"; }

start_gateway() {
    REDIS_URL=redis://127.0.0.1:$redis_port GATEWAY_LISTEN=$public GATEWAY_INTERNAL_LISTEN=$internal \
        GATEWAY_DRAIN_DELAY=0 GATEWAY_DRAIN_WINDOW=1s GATEWAY_LOG=warn "$bin/gateway" &
    gateway_pid=$!
    for _ in $(seq 100); do
        "$bin/gateway" --healthcheck "$internal" 2> /dev/null && return
        sleep 0.1
    done
    echo 'the gateway did not become ready' >&2
    exit 1
}

stop_gateway() {
    kill -TERM "$gateway_pid"
    wait "$gateway_pid"
    gateway_pid=''
}

redis-server --port $redis_port --bind 127.0.0.1 --save '' --appendonly no --dir "$dir" > "$dir/redis.log" 2>&1 &
redis_pid=$!

declare -A after_pings
for sockets in $few $many; do
    start_gateway
    printf '%s sockets: empty %s KiB' "$sockets" "$(rss_kib)"
    seconds=$((three_pings + 15))
    [ "$sockets" = $few ] || seconds=600
    "$bin/loadtest" --url "ws://$public/ws/analytics" --connections "$sockets" --rate "$rate/s" \
        --duration "${seconds}s" --pid "$gateway_pid" > "$dir/audit-$sockets" &
    loadtest_pid=$!
    sleep $((sockets / rate + three_pings))
    after_pings[$sockets]=$(rss_kib)
    printf ', after three pings %s KiB' "${after_pings[$sockets]}"
    if [ "$sockets" = $many ]; then
        before=$(cpu_ticks)
        sleep 480
        used=$(($(cpu_ticks) - before))
        printf ', after ten minutes %s KiB' "$(rss_kib)"
        printf '\nCPU in between: %s ms per second\n' "$(awk -v t="$used" 'BEGIN { printf "%.1f", t * 10 / 480 }')"
    fi
    echo
    wait "$loadtest_pid" && echo 'audit: ok' || echo "audit: exit $?"
    cat "$dir/audit-$sockets"
    stop_gateway
done
awk -v a="${after_pings[$few]}" -v b="${after_pings[$many]}" -v n=$((many - few)) \
    'BEGIN { printf "slope: %.0f bytes per socket\n", (b - a) * 1024 / n }'
