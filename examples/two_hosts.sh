#!/usr/bin/env bash
# Runs examples/two_hosts.rs between two hosts: network namespaces with names of their own, joined by a virtual cable, and removed whatever
# happens. Three times: over kernel sockets, through AF_XDP, and with a socket on one side only. Says how each device stands at the end, and what
# was lost by cause. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

missing() { echo "skipped: needs $*"; exit 0; }

# Bits of the capabilities: CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN (for namespaces), CAP_BPF.
effective=$((16#$(awk '/^CapEff:/ { print $2 }' /proc/self/status)))
for bit in 12 13 21 39; do
    (((effective >> bit) & 1)) || missing "CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW"
done
command -v ip >/dev/null || missing "ip (Debian's package iproute2)"

# `examples/two_hosts.sh [PROGRAM]`: another build of the example than the one that is made here.
program=${1:-target/release/examples/two_hosts}
if [ $# = 0 ]; then
    cargo build --release --quiet -p tightbeam --example two_hosts
fi
folder=$(mktemp -d)

near="tb-near-$$" far="tb-far-$$"
server=
remove() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    # With a namespace its interfaces go.
    for host in "$near" "$far"; do
        ip netns delete "$host" 2>/dev/null || true
    done
    rm -r "$folder"
}
trap remove EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

ip netns add "$near"
ip netns add "$far"
ip link add eth0 netns "$near" type veth peer name eth0 netns "$far"
ip -n "$near" address add 10.0.0.1/24 dev eth0
ip -n "$far" address add 10.0.0.2/24 dev eth0
for host in "$near" "$far"; do
    ip -n "$host" link set lo up
    ip -n "$host" link set eth0 up
done

# Serves at one address on the far host, calls at another from the near one.
run() {
    local serve=$1 call=$2 log
    printf '\n== served at %s, called at %s\n' "$serve" "$call"
    log=$folder/server
    : >"$log"
    ip netns exec "$far" "$program" serve "$serve" >"$log" &
    server=$!
    # It says so when it listens.
    until grep -q listening "$log"; do
        kill -0 "$server" 2>/dev/null || { cat "$log"; echo "the server has ended"; exit 1; }
        sleep 0.05
    done
    timeout 60 ip netns exec "$near" "$program" call "$call"
    wait "$server"
    server=
    cat "$log"
}

run udp:10.0.0.2:7000 udp:10.0.0.2:7000
run xdp:eth0/10.0.0.2:7000?mode=generic xdp:eth0/10.0.0.2:7000?mode=generic
run xdp:eth0/10.0.0.2:7000 udp:10.0.0.2:7000
