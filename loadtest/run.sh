#!/usr/bin/env bash
# Load-tests the release binary on this machine, with a baseline in the same run, and prints tables.
#
#   cargo build --release --locked && loadtest/run.sh
#
# First, wrk in a closed loop, where each connection sends its next request after the previous response, measures
# throughput. Then oha in an open loop at fixed rates measures the latency that a client sees: from the scheduled time
# of a request, not from the time it could be sent. The second part also draws LOAD_PLOT.
#
# Requires wrk and curl (Debian packages). Uses, if installed: nginx as the baseline (`return 200` with the bytes of a
# read response), oha (cargo install oha) and python3 for the open loop, and taskset to keep server and load on separate
# cores. Reports what it skips.
# The server runs in a temporary directory on a free loopback port; nothing else is touched.
# Exits non-zero if a tool is missing, the server does not start, or a response is not 2xx.
#
# Settings (environment):
#   LOAD_SERVER       the binary                           target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement            4
#   LOAD_ROUNDS       rounds, in each of which every measurement runs once; reports medians     1
#   LOAD_CONNECTIONS  connections                          64
#   LOAD_KEYS         entries in the store                 1000
#   LOAD_WORKERS      executors of the server              1, because the server is pinned to one core
#   LOAD_RATES        rates of the open loop in requests/s ten steps up to the closed-loop rate of oha
#   LOAD_PLOT         output file of the plot              docs/load.svg
set -euo pipefail

# shellcheck source=loadtest/common.sh
. "$(dirname "$0")/common.sh"
rounds=${LOAD_ROUNDS:-1}
plot=${LOAD_PLOT:-$here/../docs/load.svg}
need wrk curl
begin
pin "server and baseline, alternating" load

port=$(free_port)
base=http://127.0.0.1:$port
start server "$port" "${pin_first[@]}"
server_pid=$started
# A separate server for cold keys: their entries would lengthen the list of the first one.
port=$(free_port)
cold=http://127.0.0.1:$port
start cold "$port" "${pin_first[@]}"
cold_pid=$started
wait_for "$base/ready"
wait_for "$cold/ready"
fill "$base"
have_baseline=false
if command -v nginx >/dev/null; then
  start_nginx "$(curl -sf -H "X-User-Key: $user_key" "$base/configs/load-1")"
  have_baseline=true
else
  echo "skipped: the baseline (nginx is missing: apt-get install nginx-light), so the figures have no reference"
fi

# --- closed loop -------------------------------------------------------------------------------

# mixed NAME WRITES: WRITES percent of the requests are writes.
mixed() { LOAD_WRITES=$2 closed_loop "$1" "$server_pid" "$connections" "$base" -s "$here/mixed.lua"; }

# Cached reads, alone and during a flood of new user keys. wrk accounts for the requests that it would have sent
# during a stall, so one stall of 1 % of the time determines the p99: only medians of many rounds are meaningful.
storm() {
  local flood
  closed_loop calm "$server_pid" 16 "$base/configs/load-1"
  "${pin_rest[@]}" wrk -t1 -c32 "-d$((seconds + 10))s" -s "$here/storm.lua" "$base/configs/load-1" >/dev/null &
  flood=$!
  pids+=("$flood")
  sleep 0.5
  closed_loop storm "$server_pid" 16 "$base/configs/load-1"
  kill "$flood"
  wait "$flood" || true
}

# The minimum cost of a cold key: one derivation by Python's hashlib.
openssl() {
  local row
  row=$("${pin_first[@]}" python3 -c 'import hashlib, time
times = []
for number in range(5):
    began = time.process_time()
    hashlib.pbkdf2_hmac("sha256", b"user key %d" % number, bytes(64), 480_000)
    times.append(1e6 * (time.process_time() - began))
middle = sorted(times)[2]
print("openssl", 1e6 / middle, middle, max(times), middle, 0, 0)')
  rows+=("$row")
  row_of_table <<<"$row"
}

for _ in $(seq "$rounds"); do
  echo
  head_of_table "closed loop"
  if $have_baseline; then
    closed_loop baseline "$nginx_pid" "$connections" "$nginx/configs/load-1"
    closed_loop baseline-pipelined "$nginx_pid" "$connections" "$nginx/configs/load-1" -s "$here/pipelined.lua"
  fi
  closed_loop read-one-key "$server_pid" "$connections" "$base/configs/load-1"
  closed_loop pipelined "$server_pid" "$connections" "$base/configs/load-1" -s "$here/pipelined.lua"
  mixed read 0
  mixed mixed-95-5 5
  mixed mixed-50-50 50
  mixed write 100
  closed_loop list "$server_pid" 4 "$base/configs"
  storm
  closed_loop cold "$cold_pid" 4 "$cold" -s "$here/cold.lua"
  if command -v python3 >/dev/null; then openssl; fi
done
if [ "$rounds" -gt 1 ]; then
  echo
  head_of_table medians
  medians
fi
echo
if $have_baseline; then
  echo "read-one-key / baseline: $(quotient read-one-key baseline 2) of its requests/s," \
    "$(quotient read-one-key baseline 5) of its CPU time per request"
  echo "pipelined / baseline-pipelined: $(quotient pipelined baseline-pipelined 2) of its requests/s," \
    "$(quotient pipelined baseline-pipelined 5) of its CPU time per request"
fi
echo "storm / calm: $(quotient storm calm 4) of its p99"
if command -v python3 >/dev/null; then
  echo "cold / openssl: $(quotient cold openssl 5) of its CPU time per request"
fi
echo "resident memory of the server: $(resident_mib "$server_pid") MiB"

# --- open loop ---------------------------------------------------------------------------------

# open_loop SERIES PID URL RATE: appends a line to open.csv.
open_loop() {
  local series=$1 measured=$2 url=$3 rate=$4 before
  before=$(cpu_ticks "$measured")
  "${pin_others[@]}" oha --no-tui --output-format json -z "${seconds}s" -q "$rate" -c "$connections" \
    --latency-correction -H "X-User-Key: $user_key" "$url" >"$directory/oha.json"
  python3 - "$directory/oha.json" "$series" "$rate" \
    "$((100 * ($(cpu_ticks "$measured") - before) / $(getconf CLK_TCK) / seconds))" <<'PYTHON' >>"$directory/open.csv"
import json, sys
report, series, rate, busy = json.load(open(sys.argv[1])), *sys.argv[2:]
statuses = report["statusCodeDistribution"]
# Requests in flight at the end of the measurement do not count as failures.
failures = {what: n for what, n in report["errorDistribution"].items() if "deadline" not in what}
wrong = sum(n for status, n in statuses.items() if status[0] != "2") + sum(failures.values())
late = report["latencyPercentiles"]
print(series, rate, round(report["summary"]["requestsPerSec"]),
      *(f"{1000 * late[share]:.3f}" for share in ("p50", "p99", "p99.9")), busy, wrong, sep=",")
PYTHON
}

# Maximum rate of oha in a closed loop. oha uses more CPU time per request than wrk, so it gets all cores except the
# server's; on a single core it would saturate before the server.
oha_rate() {
  "${pin_others[@]}" oha --no-tui --output-format json -z "${seconds}s" -c "$connections" \
    -H "X-User-Key: $user_key" "$base/configs/load-1" |
    python3 -c 'import json, sys; print(int(json.load(sys.stdin)["summary"]["requestsPerSec"]))'
}

echo
if ! command -v oha >/dev/null; then
  echo "skipped: the open loop and its plot (oha is missing: cargo install oha)"
elif ! command -v python3 >/dev/null; then
  echo "skipped: the open loop and its plot (python3 is missing: apt-get install python3)"
else
  if [ -n "${LOAD_RATES:-}" ]; then
    read -ra rates <<<"$LOAD_RATES"
  else
    full=$(oha_rate)
    echo "oha reaches $full requests/s in a closed loop"
    mapfile -t rates < <(for tenth in $(seq 10); do echo $((full * tenth / 10 / 100 * 100)); done)
  fi
  for _ in $(seq "$rounds"); do
    for rate in "${rates[@]}"; do
      open_loop read "$server_pid" "$base/configs/load-1" "$rate"
      if $have_baseline; then open_loop nginx "$nginx_pid" "$nginx/configs/load-1" "$rate"; fi
    done
  done
  python3 "$here/plot.py" "$directory/open.csv" "$plot"
  errors_count=$((errors_count + $(awk -F, '{ wrong += $8 } END { print wrong + 0 }' "$directory/open.csv")))
  echo "plotted: $plot"
fi

judge
