#!/usr/bin/env bash
# Measures the cost of replication on this machine: a cluster of three nodes against a standalone node.
#
#   cargo build --release --locked && loadtest/cluster.sh
#
# Requires wrk, curl and python3. Uses taskset if installed: the node that receives the writes runs on one core, its
# two peers and the load on another. Runs in a separate network namespace if permitted (unshare), and then counts the
# bytes between the nodes during an idle period; otherwise that part is skipped.
# The nodes run in a temporary directory on free loopback ports; nothing else is touched.
# Exits non-zero if a tool is missing, a node does not start, or a response is not 2xx.
#
# Settings (environment):
#   LOAD_SERVER       the binary                             target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement of writes    4
#   LOAD_ROUNDS       measurements of each variant           3
#   LOAD_CONNECTIONS  connections of a closed loop           64
#   LOAD_KEYS         entries that are written               1000
#   LOAD_WORKERS      executors of each node                 1
#   LOAD_LAGS         writes whose lag is measured           200
#   LOAD_IDLE         idle period in seconds; 0 skips it     60
set -euo pipefail

# shellcheck source=loadtest/common.sh
. "$(dirname "$0")/common.sh"
rounds=${LOAD_ROUNDS:-3}
lags=${LOAD_LAGS:-200}
idle=${LOAD_IDLE:-60}
need wrk curl python3

if [ -z "${LOAD_IN_NAMESPACE:-}" ] && unshare --map-root-user --net true 2>/dev/null; then
  LOAD_IN_NAMESPACE=1 exec unshare --map-root-user --net "$0"
fi
if [ -n "${LOAD_IN_NAMESPACE:-}" ]; then
  # The loopback interface of a new namespace is down; this is `ip link set lo up`.
  python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))'
fi

begin
pin "the node that receives the writes" "its two peers and the load"

ports=("$(free_port)" "$(free_port)" "$(free_port)" "$(free_port)")
nodes=127.0.0.1:${ports[0]},127.0.0.1:${ports[1]},127.0.0.1:${ports[2]}
clustered=(env OSC_CLUSTER_ENABLED=true "OSC_CLUSTER_NODES=$nodes")
start node1 "${ports[0]}" "${pin_first[@]}" "${clustered[@]}"
written_pid=$started
start node2 "${ports[1]}" "${pin_rest[@]}" "${clustered[@]}"
start node3 "${ports[2]}" "${pin_rest[@]}" "${clustered[@]}"
start alone "${ports[3]}" "${pin_first[@]}"
alone_pid=$started
for port in "${ports[@]}"; do wait_for "http://127.0.0.1:$port/ready"; done
fill "http://127.0.0.1:${ports[0]}"
fill "http://127.0.0.1:${ports[3]}"

# caught_up: prints the seconds from the first check until all nodes have the same digest.
caught_up() {
  python3 - "${ports[@]:0:3}" <<'PYTHON'
import json, sys, time, urllib.request
ports, began = sys.argv[1:], time.monotonic()
def view(port):
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/cluster/members"))
while time.monotonic() - began < 120:
    if len({view(port)["digest"] for port in ports}) == 1:
        print(f"{time.monotonic() - began:.2f}")
        sys.exit()
    time.sleep(0.01)
sys.exit("the nodes have different digests after 120 s")
PYTHON
}

caught_up >/dev/null

# --- writes ------------------------------------------------------------------------------------

write() { closed_loop "$1" "$2" "$connections" "http://127.0.0.1:$3" -s "$here/changing.lua"; }

echo
head_of_table writes
for _ in $(seq "$rounds"); do
  write alone "$alone_pid" "${ports[3]}"
  write cluster "$written_pid" "${ports[0]}"
  echo "  the peers are in sync after $(caught_up) s"
done
echo
head_of_table medians
medians
echo "cluster / alone: $(quotient cluster alone 2) of the requests/s"

# --- lag ---------------------------------------------------------------------------------------

echo
"${pin_rest[@]}" python3 - "$lags" "$user_key" "${ports[@]:0:3}" <<'PYTHON'
import http.client, json, sys, time

count, user_key, ports = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
first, *peers = [http.client.HTTPConnection("127.0.0.1", port) for port in ports]

def ask(node, method, value=None):
    body = None if value is None else json.dumps({"value": value})
    node.request(method, "/configs/load-0", body, {"X-User-Key": user_key, "Content-Type": "application/json"})
    response = node.getresponse()
    text = response.read()
    assert response.status == 200, (response.status, text)
    return json.loads(text)["value"]

for peer in peers:  # derives the user key on each peer
    ask(peer, "GET")
lags, polls = [[] for _ in peers], []
for number in range(count):
    ask(first, "PUT", f"lag {number}")
    acknowledged = time.perf_counter()
    missing = set(range(len(peers)))
    while missing:
        for index in sorted(missing):
            began = time.perf_counter()
            seen = ask(peers[index], "GET")
            now = time.perf_counter()
            polls.append(now - began)
            if seen == f"lag {number}":
                lags[index].append(now - acknowledged)
                missing.remove(index)
        # Polling without a pause would take the peers' core away from replication.
        time.sleep(0.0005)
    time.sleep(0.02)

def at(values, share):
    return 1000 * sorted(values)[min(len(values) - 1, int(len(values) * share))]

print(f"lag from the acknowledgement until a peer returns the value, {count} sequential writes:")
for index, values in enumerate(lags):
    print(f"node{index + 2}: p50 {at(values, 0.5):.2f} ms, p99 {at(values, 0.99):.2f} ms, max {at(values, 1):.2f} ms")
print(f"one poll takes {at(polls, 0.5):.2f} ms (p50), with a pause of 0.5 ms after polling both peers")
PYTHON

# --- idle --------------------------------------------------------------------------------------

loopback_bytes() { awk '$1 == "lo:" { print $2, $3 }' /proc/net/dev; }

echo
if [ "$idle" = 0 ]; then
  echo "skipped: traffic of an idle period (LOAD_IDLE=0)"
elif [ -n "${LOAD_IN_NAMESPACE:-}" ]; then
  caught_up >/dev/null
  # Lets late acknowledgements and closing connections settle.
  sleep 2
  read -r bytes packets < <(loopback_bytes)
  sleep "$idle"
  read -r bytes_after packets_after < <(loopback_bytes)
  echo "idle for $idle s, $LOAD_KEYS entries: $((bytes_after - bytes)) bytes in $((packets_after - packets)) packets" \
    "between the three nodes, TCP and IP headers included"
else
  echo "skipped: traffic of an idle period (unshare is missing or not permitted, so other traffic would be counted)"
fi

judge
