#!/usr/bin/env bash
# Measures the cost of remote entries: a standalone node against federations of three and of ten nodes.
#
#   cargo build --release --locked && loadtest/federated.sh
#
# Requires wrk, curl and python3. Uses taskset if installed: all nodes run on one core and the load on another, so the
# requests/s reflect the total work of all nodes, without any parallelism between them. The nodes communicate over the
# loopback interface, so the latency of a real network has to be added.
# The nodes run in a temporary directory on free loopback ports; nothing else is touched.
# Exits non-zero if a tool is missing, a node does not start, or a response has an unexpected status.
#
# Settings (environment):
#   LOAD_SERVER       the binary                             target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement              4
#   LOAD_ROUNDS       rounds of all measurements             3
#   LOAD_CONNECTIONS  connections of a closed loop           64
#   LOAD_KEYS         total number of entries                1000
#   LOAD_WORKERS      executors of each node                 1
set -euo pipefail

# shellcheck source=loadtest/common.sh
. "$(dirname "$0")/common.sh"
rounds=${LOAD_ROUNDS:-3}
need wrk curl python3
[ "$LOAD_KEYS" -ge 10 ] || fail "LOAD_KEYS must be at least 10, so that each node has an entry"
begin
pin "all nodes" load
head -c 64 /dev/urandom >"$directory/salt"

# federation COUNT: starts COUNT nodes and distributes LOAD_KEYS entries evenly, in the order of the nodes.
# Sets base_COUNT and pids_COUNT.
federation() {
  local count=$1 index ports=() nodes='' own=() share first=0
  for index in $(seq "$count"); do
    ports+=("$(free_port)")
    nodes+=${nodes:+,}127.0.0.1:${ports[-1]}
  done
  local clustered=()
  [ "$count" = 1 ] ||
    clustered=(env OSC_CLUSTER_ENABLED=true OSC_CLUSTER_MODE=federated "OSC_CLUSTER_NODES=$nodes")
  for index in $(seq "$count"); do
    # All nodes start with the same salt, so that they need not agree on one.
    mkdir "$directory/node$index-of-$count"
    cp "$directory/salt" "$directory/node$index-of-$count/encryption.salt"
    start "node$index-of-$count" "${ports[index - 1]}" "${pin_first[@]}" "${clustered[@]}"
    own+=("$started")
  done
  for index in $(seq "$count"); do
    wait_for "http://127.0.0.1:${ports[index - 1]}/ready"
    share=$((LOAD_KEYS * index / count - first))
    fill "http://127.0.0.1:${ports[index - 1]}" "$first" "$share"
    first=$((first + share))
  done
  printf -v "base_$count" %s "http://127.0.0.1:${ports[0]}"
  printf -v "pids_$count" %s "${own[*]}"
  is_whole "${ports[0]}" "$count"
}

# is_whole PORT COUNT: waits until all peers of a node are healthy, and checks that its list has all entries.
is_whole() {
  python3 - "$1" "$2" "$LOAD_KEYS" "$user_key" <<'PYTHON'
import json, sys, time, urllib.request
port, nodes, keys, user_key = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def ask(target):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{target}", headers={"X-User-Key": user_key})
    with urllib.request.urlopen(request) as response:
        return json.load(response)

began = time.monotonic()
while nodes > 1 and [m["state"] for m in ask("/v1/cluster/members")["members"]].count("healthy") < nodes - 1:
    if time.monotonic() - began > 60:
        sys.exit("loadtest: a federated node does not reach all its peers after 60 s")
    time.sleep(0.1)
found = {entry["key"] for entry in ask("/configs")}
if found != {f"load-{number}" for number in range(keys)}:
    sys.exit(f"loadtest: the list over {nodes} nodes has {len(found)} entries, not {keys}")
PYTHON
}

for count in 1 3 10; do federation "$count"; done

# The first entry of the second of three nodes, and the number of its entries.
far=$((LOAD_KEYS / 3))
far_count=$((LOAD_KEYS * 2 / 3 - far))

echo
for _ in $(seq "$rounds"); do
  head_of_table "closed loop"
  # shellcheck disable=SC2154  # set by federation
  {
    closed_loop read-own "$pids_3" "$connections" "$base_3/configs/load-0"
    closed_loop read-remote "$pids_3" "$connections" "$base_3/configs/load-$far"
    closed_loop read-own-1 "$pids_3" 1 "$base_3/configs/load-0"
    closed_loop read-remote-1 "$pids_3" 1 "$base_3/configs/load-$far"
    for count in 1 3 10; do
      base=base_$count pids_of=pids_$count
      expected=404 closed_loop "missing-of-$count" "${!pids_of}" "$connections" "${!base}/configs/nowhere"
    done
    LOAD_KEYS=$far closed_loop update-own "$pids_3" "$connections" "$base_3" -s "$here/changing.lua"
    LOAD_FIRST=$far LOAD_KEYS=$far_count \
      closed_loop update-remote "$pids_3" "$connections" "$base_3" -s "$here/changing.lua"
    for count in 1 3 10; do
      base=base_$count pids_of=pids_$count
      closed_loop "list-of-$count" "${!pids_of}" 4 "${!base}/configs"
    done
  }
  echo
done

head_of_table medians
medians
# compare NAME BASELINE
compare() {
  echo "$1 / $2: $(quotient "$1" "$2" 2) of the requests/s, $(quotient "$1" "$2" 5) of the CPU time," \
    "p50 $(quotient "$1" "$2" 3), p99 $(quotient "$1" "$2" 4)"
}
echo
compare read-remote read-own
compare read-remote-1 read-own-1
compare missing-of-3 missing-of-1
compare missing-of-10 missing-of-1
compare update-remote update-own
compare list-of-3 list-of-1
compare list-of-10 list-of-1
judge
