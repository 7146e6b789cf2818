#!/usr/bin/env bash
# Very many sockets on one machine: gateways enough for the descriptor limit, each on an address of its own, on one
# Redis, with presence and registry on; clients from as many processes as they need. Stays through three heartbeats
# and ends by itself. Usage: loadtest/million.sh target/release [SOCKETS [GATEWAYS]]
#
# Needs about 10 KiB of free memory per socket (both ends are on this machine). Pings come every 30 s as always,
# snapshots every 30 s.
set -euo pipefail

readonly bin=$1 sockets=${2:-1000000}
readonly gateways=${3:-$(((sockets + 18999) / 19000))}
readonly redis_port=7419 port=7420 internal_port=7421 rate=${RATE:-4000}
readonly seconds=${SECONDS_LISTENING:-100} gateway_mib_max=${GATEWAY_MIB_MAX:-64}
dir=$(mktemp -d)
redis_pid=''
gateway_pids=()

# shellcheck disable=SC2329 # the trap calls it
finish() {
    [ ${#gateway_pids[@]} = 0 ] || kill "${gateway_pids[@]}" 2> /dev/null || true
    for pid in "${gateway_pids[@]}"; do
        wait "$pid" 2> /dev/null || true
    done
    [ -z "$redis_pid" ] || kill "$redis_pid" 2> /dev/null || true
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

rss_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }

free_kib=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
if [ $((sockets * 10)) -gt "$free_kib" ]; then
    echo "$sockets sockets need about $((sockets * 10 / 1024)) MiB, $((free_kib / 1024)) MiB are free" >&2
    exit 2
fi

redis-server --port $redis_port --bind 127.0.0.1 --save '' --appendonly no --dir "$dir" > "$dir/redis.log" 2>&1 &
redis_pid=$!
options=(--metrics "http://127.0.100.1:$internal_port/metrics")
for n in $(seq "$gateways"); do
    host=127.0.100.$n
    REDIS_URL=redis://127.0.0.1:$redis_port GATEWAY_LISTEN=$host:$port GATEWAY_INTERNAL_LISTEN=$host:$internal_port \
        GATEWAY_TICK_INTERVAL=30s GATEWAY_PING_INTERVAL=30s GATEWAY_DRAIN_DELAY=0 GATEWAY_DRAIN_WINDOW=5s \
        GATEWAY_LOG=warn "$bin/gateway" >> "$dir/gateways.log" 2>&1 &
    gateway_pids+=($!)
    options+=(--url "ws://$host:$port/ws/analytics" --pid $!)
done
for n in $(seq "$gateways"); do
    for _ in $(seq 300); do
        "$bin/gateway" --healthcheck "127.0.100.$n:$internal_port" 2> /dev/null && continue 2
        sleep 0.1
    done
    echo "gateway $n did not become ready" >&2
    exit 1
done
echo "$gateways gateways are ready"

"$bin/loadtest" million --connections "$sockets" --rate "$rate/s" --duration "${seconds}s" --interval 30s \
    --min-pings 3 --min-updates 3 "${options[@]}" > "$dir/report" 2> "$dir/errors" &
loadtest_pid=$!

# The largest sums, while it runs: every two seconds.
most_gateways=0 most_one=0 most_clients=0 most_redis=0
while kill -0 "$loadtest_pid" 2> /dev/null; do
    sum=0
    for pid in "${gateway_pids[@]}"; do
        kib=$(rss_kib "$pid" || echo 0)
        sum=$((sum + kib))
        [ "$kib" -le "$most_one" ] || most_one=$kib
    done
    [ $sum -le $most_gateways ] || most_gateways=$sum
    sum=0
    for pid in "$loadtest_pid" $(cat "/proc/$loadtest_pid/task/$loadtest_pid/children" 2> /dev/null || true); do
        kib=$(rss_kib "$pid" 2> /dev/null || echo 0)
        sum=$((sum + ${kib:-0}))
    done
    [ $sum -le $most_clients ] || most_clients=$sum
    kib=$(rss_kib "$redis_pid")
    [ "$kib" -le "$most_redis" ] || most_redis=$kib
    sleep 2
done
code=0
wait "$loadtest_pid" || code=$?
cat "$dir/report" "$dir/errors"
mib() { echo "$(($1 / 1024)) MiB"; }
echo "most RSS   gateways $(mib $most_gateways) ($(mib "$most_one") the largest), clients $(mib $most_clients)," \
    "Redis $(mib "$most_redis")"
awk -v pid="$redis_pid" '{ printf "Redis CPU  %.1f s\n", ($14 + $15) / 100 }' "/proc/$redis_pid/stat"
sort "$dir/gateways.log" | cut -c 28- | uniq -c | sort -rn | head -5
if [ $((most_one / 1024)) -ge "$gateway_mib_max" ]; then
    echo "BROKEN     a gateway needed $(mib "$most_one"), at most $gateway_mib_max MiB wanted"
    code=1
fi
exit "$code"
