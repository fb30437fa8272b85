#!/usr/bin/env bash
# Starts one node alone, a federation of three and one of ten, and prints what it costs that an entry is elsewhere.
#
#   cargo build --release --locked && loadtest/federated.sh
#
# Needs wrk, curl and python3. Uses taskset where it is installed: all nodes are on one core and the load is on
# another, so the requests/s tell what the nodes cost together; nothing that the nodes do at the same time elsewhere
# shows. The network between them is the loopback interface, so the latency of a real one has to be added.
# The nodes run on a temporary directory and free ports of the loopback address; nothing else is touched.
# Exits non-zero when a tool is missing, a node does not start, or an answer is not what is expected.
#
# Settings (environment):
#   LOAD_SERVER       the binary                             target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement              4
#   LOAD_ROUNDS       rounds, in each of which all take turns 3
#   LOAD_CONNECTIONS  connections of a closed loop           64
#   LOAD_KEYS         entries of all nodes together          1000
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

# federation COUNT: starts that many nodes which share LOAD_KEYS entries evenly, the first node the first ones.
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
    # All begin with one salt, so that nobody has to agree on one.
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

# is_whole PORT COUNT: waits until the node has reached all others, and looks whether its list has all entries.
is_whole() {
  python3 - "$1" "$2" "$LOAD_KEYS" "$user_key" <<'PYTHON'
import json, sys, time, urllib.request
port, nodes, keys, user_key = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def ask(target):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{target}", headers={"X-User-Key": user_key})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)

began = time.monotonic()
while nodes > 1 and [m["state"] for m in ask("/v1/cluster/members")["members"]].count("healthy") < nodes - 1:
    if time.monotonic() - began > 60:
        sys.exit("loadtest: a federated node has not reached all others after 60 s")
    time.sleep(0.1)
found = {entry["key"] for entry in ask("/configs")}
if found != {f"load-{number}" for number in range(keys)}:
    sys.exit(f"loadtest: the list over {nodes} nodes has {len(found)} entries, not {keys}")
PYTHON
}

for count in 1 3 10; do federation "$count"; done

# The first entry that the second of three nodes has, and how many the first and the second have.
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
# compare NAME OF
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
