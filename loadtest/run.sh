#!/usr/bin/env bash
# Puts the release binary under load on this machine, beside an anchor in the same run, and prints tables.
#
#   cargo build --release --locked && loadtest/run.sh
#
# First wrk in a closed loop, where each connection sends its next request when it has the answer: how much goes
# through. Then oha in an open loop at fixed rates, where latency counts from when a request was due, not from when
# it could be sent: what a client waits for. The second part also draws LOAD_PLOT.
#
# Needs wrk and curl (Debian packages). Uses, where they are installed: nginx as the anchor (`return 200` of
# the bytes that a read answers), oha (cargo install oha) and python3 for the open loop, taskset to keep server and
# load apart. It says what it skips.
# The server runs on a temporary directory and a free port of the loopback address; nothing else is touched.
# Exits non-zero when a tool is missing, the server does not start, or an answer is not 2xx.
#
# Settings (environment):
#   LOAD_SERVER       the binary                           target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement            4
#   LOAD_ROUNDS       rounds, in each of which all take turns; the medians count     1
#   LOAD_CONNECTIONS  connections                          64
#   LOAD_KEYS         entries in the store                 1000
#   LOAD_WORKERS      executors of the server              1, as many as the core that it is pinned to can run
#   LOAD_RATES        requests/s of the open loop, several tenths to all of what oha reaches in a closed loop
#   LOAD_PLOT         where the plot of the open loop goes docs/load.svg
set -euo pipefail

# shellcheck source=loadtest/common.sh
. "$(dirname "$0")/common.sh"
rounds=${LOAD_ROUNDS:-1}
plot=${LOAD_PLOT:-$here/../docs/load.svg}
need wrk curl
begin
pin "server and anchor, one at a time" load

port=$(free_port)
base=http://127.0.0.1:$port
start server "$port" "${pin_first[@]}"
server_pid=$started
# Cold keys bring entries of their own, which would make the list of the first server longer.
port=$(free_port)
cold=http://127.0.0.1:$port
start cold "$port" "${pin_first[@]}"
cold_pid=$started
wait_for "$base/ready"
wait_for "$cold/ready"
fill "$base"
have_anchor=false
if command -v nginx >/dev/null; then
  start_nginx "$(curl -sf -H "X-User-Key: $user_key" "$base/configs/load-1")"
  have_anchor=true
else
  echo "skipped: the anchor (nginx is missing: apt-get install nginx-light), so these figures compare with nothing"
fi

# --- closed loop -------------------------------------------------------------------------------

# mixed NAME WRITES: so many of a hundred requests are writes.
mixed() { LOAD_WRITES=$2 closed_loop "$1" "$server_pid" "$connections" "$base" -s "$here/mixed.lua"; }

# Cached reads, by themselves and while new user keys pour in. wrk counts what it would have sent during a pause, so
# one pause of the machine of 1 % of the time decides about the p99: only medians of many rounds say something.
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

# One derivation by Python's hashlib is what a cold key costs at least.
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
  if $have_anchor; then
    closed_loop anchor "$nginx_pid" "$connections" "$nginx/configs/load-1"
    closed_loop anchor-pipelined "$nginx_pid" "$connections" "$nginx/configs/load-1" -s "$here/pipelined.lua"
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
if $have_anchor; then
  echo "read-one-key / anchor: $(quotient read-one-key anchor 2) of its requests/s," \
    "$(quotient read-one-key anchor 5) of its CPU time for each"
  echo "pipelined / anchor-pipelined: $(quotient pipelined anchor-pipelined 2) of its requests/s," \
    "$(quotient pipelined anchor-pipelined 5) of its CPU time for each"
fi
echo "storm / calm: $(quotient storm calm 4) of its p99"
if command -v python3 >/dev/null; then
  echo "cold / openssl: $(quotient cold openssl 5) of its CPU time for each"
fi
echo "resident memory of the server: $(resident_mib "$server_pid") MiB"

# --- open loop ---------------------------------------------------------------------------------

# open_loop SERIES PID URL RATE [ROUND]: adds a line to open.csv.
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
# Requests that are under way when the time is over are no failures.
failures = {what: n for what, n in report["errorDistribution"].items() if "deadline" not in what}
wrong = sum(n for status, n in statuses.items() if status[0] != "2") + sum(failures.values())
late = report["latencyPercentiles"]
print(series, rate, round(report["summary"]["requestsPerSec"]),
      *(f"{1000 * late[share]:.3f}" for share in ("p50", "p99", "p99.9")), busy, wrong, sep=",")
PYTHON
}

# What oha reaches if no rate holds it back. It needs more for each request than wrk does, so it has all cores but
# the server's; with one of them it is what saturates first.
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
      if $have_anchor; then open_loop nginx "$nginx_pid" "$nginx/configs/load-1" "$rate"; fi
    done
  done
  python3 "$here/plot.py" "$directory/open.csv" "$plot"
  errors_count=$((errors_count + $(awk -F, '{ wrong += $8 } END { print wrong + 0 }' "$directory/open.csv")))
  echo "plotted: $plot"
fi

judge
