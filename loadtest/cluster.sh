#!/usr/bin/env bash
# Starts three nodes of a cluster and one node alone, and prints what replication costs on this machine.
#
#   cargo build --release --locked && loadtest/cluster.sh
#
# Needs wrk, curl and python3. Uses taskset where it is installed: the node that is written to is on one core, its
# two peers and the load on another. Runs in a network namespace of its own where that is allowed (unshare), and
# then counts the bytes between the nodes in an idle time; elsewhere that part is skipped.
# The nodes run on a temporary directory and free ports of the loopback address; nothing else is touched.
# Exits non-zero when a tool is missing, a node does not start, or an answer is not 2xx.
#
# Settings (environment):
#   LOAD_SERVER       the binary                             target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement of writes    4
#   LOAD_ROUNDS       measurements of each contender         3
#   LOAD_CONNECTIONS  connections of a closed loop           64
#   LOAD_KEYS         entries that are written               1000
#   LOAD_WORKERS      executors of each node                 1
#   LOAD_LAGS         writes whose lag is measured           200
#   LOAD_IDLE         seconds of the idle time               60
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
pin "written to" "its two peers and the load"

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

# Seconds until all nodes hold the same, from the first look on.
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
sys.exit("the nodes do not hold the same after 120 s")
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
  echo "  the peers hold the same after $(caught_up) s"
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
    answer = node.getresponse()
    text = answer.read()
    assert answer.status == 200, (answer.status, text)
    return json.loads(text)["value"]

for peer in peers:  # so that the key is derived
    ask(peer, "GET")
lags, looks = [[] for _ in peers], []
for number in range(count):
    ask(first, "PUT", f"lag {number}")
    acknowledged = time.perf_counter()
    missing = set(range(len(peers)))
    while missing:
        for index in sorted(missing):
            began = time.perf_counter()
            seen = ask(peers[index], "GET")
            now = time.perf_counter()
            looks.append(now - began)
            if seen == f"lag {number}":
                lags[index].append(now - acknowledged)
                missing.remove(index)
        # Not more often: looking without a pause takes the peers' core away from what is looked for.
        time.sleep(0.0005)
    time.sleep(0.02)

def at(values, share):
    return 1000 * sorted(values)[min(len(values) - 1, int(len(values) * share))]

print(f"lag from the acknowledgement until a peer shows the value, {count} writes, one at a time:")
for index, values in enumerate(lags):
    print(f"node{index + 2}: p50 {at(values, 0.5):.2f} ms, p99 {at(values, 0.99):.2f} ms, max {at(values, 1):.2f} ms")
print(f"one look takes {at(looks, 0.5):.2f} ms (p50), and there is a pause of 0.5 ms after each pair of looks")
PYTHON

# --- idle --------------------------------------------------------------------------------------

loopback_bytes() { awk '$1 == "lo:" { print $2, $3 }' /proc/net/dev; }

echo
if [ "$idle" = 0 ]; then
  echo "skipped: bytes of an idle time (LOAD_IDLE=0)"
elif [ -n "${LOAD_IN_NAMESPACE:-}" ]; then
  caught_up >/dev/null
  # Late acknowledgements and closing connections.
  sleep 2
  read -r bytes packets < <(loopback_bytes)
  sleep "$idle"
  read -r bytes_after packets_after < <(loopback_bytes)
  echo "idle for $idle s, $LOAD_KEYS entries: $((bytes_after - bytes)) bytes in $((packets_after - packets)) packets" \
    "between the three nodes, TCP and IP headers included"
else
  echo "skipped: bytes of an idle time (unshare is missing or not allowed, so others' bytes would be counted too)"
fi

judge
