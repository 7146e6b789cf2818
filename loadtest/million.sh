#!/usr/bin/env bash
# Very many sockets on one machine: gateways enough for the descriptor limit, each on an address of its own, on one
# Redis, with presence and registry on; clients from as many processes as they need. Stays through three heartbeats
# and ends by itself. Usage: loadtest/million.sh target/release [SOCKETS [GATEWAYS]]
#
# Exit code 1 unless all connect, get init, three pings and three snapshots each, and stay, and no gateway ever needs
# GATEWAY_MIB_MAX=64. RATE=4500 sockets are opened per second, then SECONDS_LISTENING=150: three pings, each up to a second
# late, of those who were opened last, by nodes that get their turn when they get it.
# Needs about 10 KiB of free memory per socket (both ends are on this machine). Pings come every 30 s as always,
# snapshots every 30 s. Redis, which has a machine to itself elsewhere, shares the cores with a hundred processes here:
# all of them are made to step aside for it (nice), or it would get a hundredth of a machine of which it needs a tenth.
# All nodes get a snapshot at once and all clients answer at once, which takes two cores a good part of the 30 s; so
# clients and nodes have the patience of people instead of that of health checks: 60 s for a handshake, 25 s for a pong.
set -euo pipefail
# shellcheck source=loadtest/rig.sh
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"

readonly bin=$1 sockets=${2:-1000000}
readonly gateways=${3:-$(((sockets + 18999) / 19000))}
readonly redis_port=7419 port=7420 internal_port=7421 rate=${RATE:-4500}
readonly seconds=${SECONDS_LISTENING:-150} gateway_mib_max=${GATEWAY_MIB_MAX:-64}
dir=$(mktemp -d)
redis_pid=''
gateway_pids=() loadtest_pid=''

# The load tester's processes end with it: its end of their pipes is their lease on life.
# shellcheck disable=SC2329 # the trap calls it
finish() { end_rig "$dir" ${loadtest_pid:+"$loadtest_pid"} "${gateway_pids[@]}"; }
trap finish EXIT
trap 'exit 130' INT TERM

# $1: a file of /proc, $2: what awk does with it; the rest: process ids. Who has ended counts as nothing.
sum_of() {
    local file=$1 program=$2 files
    shift 2
    files=("${@/%//$file}")
    awk "$program"' END { print sum + 0 }' "${files[@]/#//proc/}" 2> /dev/null || true
}
# shellcheck disable=SC2016 # $2, $12 and $13 are awk's
rss_kib() { sum_of status '/^VmRSS/ { sum += $2 }' "$@"; }
# utime + stime, in ticks of 1/100 s.
# shellcheck disable=SC2016
cpu_ticks() { sum_of stat '{ sub(/.*\) /, ""); sum += $12 + $13 }' "$@"; }
kernel_kib() {
    # Objects of the kernel, and pages (of 4 KiB) that hold bytes on their way.
    awk '/^Slab:/ { sum += $2 } /^TCP:/ { sum += $NF * 4 } END { print sum }' /proc/meminfo /proc/net/sockstat
}

free_kib=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
if [ $((sockets * 10)) -gt "$free_kib" ]; then
    echo "$sockets sockets need about $((sockets * 10 / 1024)) MiB, $((free_kib / 1024)) MiB are free" >&2
    exit 2
fi

start_redis $redis_port "$dir"
options=()
for n in $(seq "$gateways"); do
    host=127.0.100.$n
    REDIS_URL=redis://127.0.0.1:$redis_port GATEWAY_LISTEN=$host:$port GATEWAY_INTERNAL_LISTEN=$host:$internal_port \
        GATEWAY_TICK_INTERVAL=30s GATEWAY_PING_INTERVAL=30s GATEWAY_PONG_TIMEOUT=25s GATEWAY_DRAIN_DELAY=0 GATEWAY_DRAIN_WINDOW=5s \
        GATEWAY_LOG=warn nice -n 19 "$bin/gateway" >> "$dir/gateways.log" 2>&1 &
    gateway_pids+=($!)
    options+=(--url "ws://$host:$port/ws/analytics" --pid $! --metrics "http://$host:$internal_port/metrics")
done
for n in $(seq "$gateways"); do
    await_gateway "$bin/gateway" "127.0.100.$n:$internal_port" "${gateway_pids[$n - 1]}"
done
echo "$gateways gateways are ready"

nice -n 19 "$bin/loadtest" million --connections "$sockets" --rate "$rate/s" --duration "${seconds}s" --interval 30s \
    --min-pings 3 --min-updates 3 --open-within 60s "${options[@]}" > "$dir/report" 2> "$dir/errors" &
loadtest_pid=$!

# The largest sums, while it runs: every two seconds. Kernel memory is that of both ends of each connection.
kernel_before=$(kernel_kib)
most_gateways=0 most_one=0 most_clients=0 most_redis=0 most_kernel=0 clients_ticks=0
at_most() { [ "${2:-0}" -le "${!1}" ] || printf -v "$1" %s "$2"; }
while kill -0 "$loadtest_pid" 2> /dev/null; do
    sum=0
    for pid in "${gateway_pids[@]}"; do
        kib=$(rss_kib "$pid")
        sum=$((sum + ${kib:-0}))
        at_most most_one "${kib:-0}"
    done
    at_most most_gateways $sum
    children=()
    # The line has no end, which read tells as a failure.
    read -ra children 2> /dev/null < "/proc/$loadtest_pid/task/$loadtest_pid/children" || true
    kib=$(rss_kib "$loadtest_pid" "${children[@]}")
    at_most most_clients "${kib:-0}"
    ticks=$(cpu_ticks "$loadtest_pid" "${children[@]}")
    at_most clients_ticks "${ticks:-0}"
    at_most most_redis "$(rss_kib "$redis_pid")"
    at_most most_kernel $(($(kernel_kib) - kernel_before))
    sleep 2
done
code=0
wait "$loadtest_pid" || code=$?
loadtest_pid=''
cat "$dir/report" "$dir/errors"
mib() { echo "$(($1 / 1024)) MiB"; }
echo "most RSS   gateways $(mib $most_gateways) ($(mib "$most_one") the largest), clients $(mib $most_clients)," \
    "Redis $(mib "$most_redis")"
echo "kernel     $(mib $most_kernel) more at most, $((most_kernel * 1024 / sockets)) bytes per socket with its client"
seconds_of() { echo "$(($1 / 100)).$(($1 / 10 % 10)) s"; }
echo "CPU        gateways $(seconds_of "$(cpu_ticks "${gateway_pids[@]}")"), clients $(seconds_of $clients_ticks)," \
    "Redis $(seconds_of "$(cpu_ticks "$redis_pid")"); $SECONDS s from begin to end"
sort "$dir/gateways.log" | cut -c 28- | uniq -c | sort -rn | head -5
if [ $((most_one / 1024)) -ge "$gateway_mib_max" ]; then
    echo "BROKEN     a gateway needed $(mib "$most_one"), at most $gateway_mib_max MiB wanted"
    code=1
fi
exit "$code"
