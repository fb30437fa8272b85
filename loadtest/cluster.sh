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
#   LOAD_LAGS         writes whose lag is measured           200
#   LOAD_IDLE         seconds of the idle time               60
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
server=${LOAD_SERVER:-$here/../target/release/opensecureconf}
seconds=${LOAD_SECONDS:-4}
rounds=${LOAD_ROUNDS:-3}
connections=${LOAD_CONNECTIONS:-64}
lags=${LOAD_LAGS:-200}
idle=${LOAD_IDLE:-60}
export LOAD_KEYS=${LOAD_KEYS:-1000}
user_key=a-user-key-for-the-load-test

fail() {
  echo "loadtest: $*" >&2
  exit 1
}

for tool in wrk curl python3; do
  command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt-get install $tool)"
done
[ -x "$server" ] || fail "$server is missing (cargo build --release --locked)"

if [ -z "${LOAD_IN_NAMESPACE:-}" ] && unshare --map-root-user --net true 2>/dev/null; then
  LOAD_IN_NAMESPACE=1 exec unshare --map-root-user --net "$0"
fi
if [ -n "${LOAD_IN_NAMESPACE:-}" ]; then
  # The loopback interface of a new namespace is down; this is `ip link set lo up`.
  python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))'
fi

# --- processes, ended by their ids -------------------------------------------------------------

directory=$(mktemp -d)
pids=()

clean_up() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" || true; done
  rm -rf "$directory"
}
trap clean_up EXIT

cores() {
  local range
  for range in $(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status | tr ',' ' '); do
    seq "${range%-*}" "${range#*-}"
  done
}

mapfile -t usable < <(cores)
pin_first=()
pin_rest=()
if [ "${#usable[@]}" -ge 2 ] && command -v taskset >/dev/null; then
  pin_first=(taskset -c "${usable[0]}")
  pin_rest=(taskset -c "${usable[1]}")
  echo "written to: core ${usable[0]}; its two peers and the load: core ${usable[1]}"
else
  echo "skipped: pinning (it needs taskset and two cores), so nodes and load disturb each other"
fi

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# start NAME PORT CLUSTERED COMMAND...: the command is how to pin it.
start() {
  local name=$1 port=$2 clustered=$3
  shift 3
  mkdir "$directory/$name"
  (
    cd "$directory/$name"
    for variable in $(compgen -v OSC_ || true); do unset "$variable"; done
    OSC_HOST_PORT=$port OSC_WORKERS=1 OSC_LOG_LEVEL=WARNING OSC_CLUSTER_ENABLED=$clustered OSC_CLUSTER_NODE_ID=$name \
      OSC_CLUSTER_NODES=$nodes exec "$@" "$server"
  ) >"$directory/$name.log" 2>&1 &
  pids+=($!)
}

wait_for() {
  for _ in $(seq 200); do
    curl -sf -o /dev/null "$1/ready" && return
    sleep 0.1
  done
  cat "$directory"/*.log >&2
  fail "no answer from $1"
}

fill() {
  local number
  for number in $(seq 0 $((LOAD_KEYS - 1))); do
    [ "$number" = 0 ] || echo next
    printf 'url = "%s/configs"\nfail\nsilent\noutput = "/dev/null"\n' "$1"
    printf 'header = "X-User-Key: %s"\nheader = "Content-Type: application/json"\n' "$user_key"
    printf 'data = "{\\"key\\":\\"load-%s\\",\\"value\\":0}"\n' "$number"
  done >"$directory/fill.curl"
  curl --config "$directory/fill.curl"
}

ports=("$(free_port)" "$(free_port)" "$(free_port)" "$(free_port)")
nodes=127.0.0.1:${ports[0]},127.0.0.1:${ports[1]},127.0.0.1:${ports[2]}
start node1 "${ports[0]}" true "${pin_first[@]}"
start node2 "${ports[1]}" true "${pin_rest[@]}"
start node3 "${ports[2]}" true "${pin_rest[@]}"
start alone "${ports[3]}" false "${pin_first[@]}"
for port in "${ports[@]}"; do wait_for "http://127.0.0.1:$port"; done
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

errors_count=0

# measure NAME PORT
measure() {
  "${pin_rest[@]}" wrk -t1 "-c$connections" "-d${seconds}s" --latency -H "X-User-Key: $user_key" \
    -s "$here/changing.lua" "http://127.0.0.1:$2" >"$directory/wrk.out"
  awk -v name="$1" '
    /^ *50%/ { p50 = $2 }
    /^ *99%/ { p99 = $2 }
    /^Requests\/sec/ { rate = $2 }
    /Socket errors/ { gsub(",", ""); errors += $4 + $6 + $8 + $10 }
    /Non-2xx/ { errors += $NF }
    END { printf "%-8s %10.0f %10s %10s %8d", name, rate, p50, p99, errors }' "$directory/wrk.out" >"$directory/row"
  cat "$directory/row"
  awk '{ print $1, $2 }' "$directory/row" >>"$directory/rates"
  errors_count=$((errors_count + $(awk '{ print $NF }' "$directory/row")))
}

echo
printf '%-8s %10s %10s %10s %8s   %s\n' writes requests/s p50 p99 errors "peers hold the same after"
for _ in $(seq "$rounds"); do
  measure alone "${ports[3]}"
  echo
  measure cluster "${ports[0]}"
  printf '   %s s\n' "$(caught_up)"
done
awk '{ print $1, $2 }' "$directory/rates" | sort -k1,1 -k2,2n | awk '
  { values[$1, ++count[$1]] = $2 }
  END {
    middle = int((count["alone"] + 1) / 2)
    printf "medians: %d alone, %d in the cluster, ratio %.2f\n", values["alone", middle],
      values["cluster", middle], values["cluster", middle] / values["alone", middle]
  }'

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

[ "$errors_count" = 0 ] || fail "$errors_count answers were no 2xx, or connections failed"
