#!/usr/bin/env bash
# What an idle socket costs: two nodes at the same time, one with few sockets and one with many, of distinct addresses,
# each with a key prefix of its own on one Redis, at the protocol's intervals, cap and presence on. Prints the slope of
# resident memory between the two after three pings and at the end, the CPU used meanwhile, and the audits.
# Usage: loadtest/idle.sh target/release
#
# FEW=2000 and MANY=18000 sockets (a process may have 20,000 descriptors), SECONDS_IDLE=600. Exit code 1 when the slope
# is above BYTES_MAX=972 (0.95 KiB), an empty process above EMPTY_KIB_MAX=16384, or an audit finds something.
set -euo pipefail
# shellcheck source=loadtest/rig.sh
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"

readonly bin=$1 few=${FEW:-2000} many=${MANY:-18000} seconds=${SECONDS_IDLE:-600}
readonly bytes_max=${BYTES_MAX:-972} empty_kib_max=${EMPTY_KIB_MAX:-16384}
readonly redis_port=7399 rate=1000 settle=8 three_pings=95
dir=$(mktemp -d)
declare -A gateway loadtest empty public internal
code=0

# shellcheck disable=SC2329 # the trap calls it
finish() { end_rig "$dir" "${loadtest[@]}" "${gateway[@]}"; }
trap finish EXIT
trap 'exit 130' INT TERM

rss_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }
# utime + stime, in ticks of 1/100 s.
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

broken() {
    echo "BROKEN  $*"
    code=1
}

start_gateway() {
    local at=$1 port=$2
    public[$at]=127.0.0.1:$port internal[$at]=127.0.0.1:$((port + 1))
    REDIS_URL=redis://127.0.0.1:$redis_port GATEWAY_KEY_PREFIX=idle$at GATEWAY_LISTEN=${public[$at]} \
        GATEWAY_INTERNAL_LISTEN=${internal[$at]} GATEWAY_DRAIN_DELAY=0 GATEWAY_DRAIN_WINDOW=1s GATEWAY_LOG=warn \
        "$bin/gateway" &
    gateway[$at]=$!
    await_gateway "$bin/gateway" "${internal[$at]}" "${gateway[$at]}"
}

# $1: when.
slope() {
    local kib_few kib_many bytes
    kib_few=$(rss_kib "${gateway[$few]}") kib_many=$(rss_kib "${gateway[$many]}")
    bytes=$(((kib_many - kib_few) * 1024 / (many - few)))
    echo "$1: $few sockets $kib_few KiB, $many sockets $kib_many KiB; slope $bytes bytes per socket"
    [ "$bytes" -le "$bytes_max" ] || broken "$bytes bytes per socket, at most $bytes_max wanted"
}

start_redis $redis_port "$dir"
start_gateway "$few" 7400
start_gateway "$many" 7402
sleep $settle
for n in $few $many; do
    empty[$n]=$(rss_kib "${gateway[$n]}")
    echo "empty: ${empty[$n]} KiB"
    [ "${empty[$n]}" -le "$empty_kib_max" ] || broken "${empty[$n]} KiB, at most $empty_kib_max wanted"
done
opening=$((many / rate))
for n in $few $many; do
    # Both tests end after the last look at the gateways.
    "$bin/loadtest" idle --url "ws://${public[$n]}/ws/analytics" --connections "$n" --processes 0 --rate $rate/s \
        --duration $((opening - n / rate + seconds + 15))s --pid "${gateway[$n]}" --metrics "http://${internal[$n]}/metrics" \
        > "$dir/audit-$n" 2>&1 &
    loadtest[$n]=$!
done
sleep $((opening + (three_pings < seconds ? three_pings : seconds)))
slope 'after three pings'
before=$(cpu_ticks "${gateway[$many]}")
rest=$((seconds > three_pings ? seconds - three_pings : 0))
if [ $rest -gt 0 ]; then
    sleep $rest
    used=$(($(cpu_ticks "${gateway[$many]}") - before))
    slope "after $seconds s"
    awk -v t="$used" -v s=$rest 'BEGIN { printf "CPU with the many, in between: %.1f ms per second\n", t * 10 / s }'
fi
for n in $few $many; do
    wait "${loadtest[$n]}" || broken "the audit of $n sockets"
    cat "$dir/audit-$n"
done
exit $code
