#!/usr/bin/env bash
# Puts the release binary under load on this machine, beside an anchor in the same run, and prints a table.
#
#   cargo build --release --locked && loadtest/run.sh
#
# Needs wrk and curl (Debian packages). Uses, where they are installed: nginx as the anchor (`return 200` of
# the bytes that a read answers), oha for an open loop at a fixed rate, taskset to keep server and load apart.
# The server runs on a temporary directory and a free port of the loopback address; nothing else is touched.
# Exits non-zero when a tool is missing, the server does not start, or an answer is not 2xx.
#
# Settings (environment):
#   LOAD_SERVER       the binary                        target/release/opensecureconf
#   LOAD_SECONDS      length of one measurement         4
#   LOAD_CONNECTIONS  connections of a closed loop      64
#   LOAD_KEYS         entries in the store              1000
#   LOAD_RATE         requests/s of the open loop       5000
#   LOAD_WORKERS      executors of the server           1, as many as the core that it is pinned to can run
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
server=${LOAD_SERVER:-$here/../target/release/opensecureconf}
seconds=${LOAD_SECONDS:-4}
connections=${LOAD_CONNECTIONS:-64}
rate=${LOAD_RATE:-5000}
workers=${LOAD_WORKERS:-1}
export LOAD_KEYS=${LOAD_KEYS:-1000}
export LOAD_BODY='{"value":{"host":"prod-server.com","port":5432,"username":"admin","password":"super_secret"},"category":"database"}'
user_key=a-user-key-for-the-load-test

fail() {
  echo "loadtest: $*" >&2
  exit 1
}

for tool in wrk curl; do
  command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt-get install $tool)"
done
[ -x "$server" ] || fail "$server is missing (cargo build --release --locked)"

# --- processes, ended by their ids -------------------------------------------------------------

directory=$(mktemp -d)
server_pid=
anchor_pid=

stop() {
  [ -n "$1" ] || return 0
  kill -TERM "$1" 2>/dev/null || return 0
  wait "$1" || true
}

clean_up() {
  stop "$server_pid"
  stop "$anchor_pid"
  rm -rf "$directory"
}
trap clean_up EXIT

# --- where things run --------------------------------------------------------------------------

# The cores that this process may use, one a line, from a list such as 0-1,4.
cores() {
  local range
  for range in $(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status | tr ',' ' '); do
    seq "${range%-*}" "${range#*-}"
  done
}

mapfile -t usable < <(cores)
pin_server=()
pin_load=()
if [ "${#usable[@]}" -ge 2 ] && command -v taskset >/dev/null; then
  pin_server=(taskset -c "${usable[0]}")
  pin_load=(taskset -c "${usable[1]}")
  echo "server and anchor on core ${usable[0]}, load on core ${usable[1]}; one contender runs at a time"
else
  echo "skipped: pinning (it needs taskset and two cores), so server and load disturb each other"
fi

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000))
    # A refused connection means that nobody listens.
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# wait_for URL LOG
wait_for() {
  for _ in $(seq 100); do
    curl -sf -o "$directory/ignored" "$1" && return
    sleep 0.1
  done
  cat "$2" >&2
  fail "no answer from $1"
}

start_server() {
  local port
  port=$(free_port)
  base=http://127.0.0.1:$port
  (
    cd "$directory"
    for name in $(compgen -v OSC_ || true); do unset "$name"; done
    OSC_HOST=127.0.0.1 OSC_HOST_PORT=$port OSC_WORKERS=$workers OSC_LOG_LEVEL=WARNING \
      OSC_DATABASE_PATH=$directory/load.db OSC_SALT_FILE_PATH=$directory/load.salt \
      exec "${pin_server[@]}" "$server"
  ) >"$directory/server.log" 2>&1 &
  server_pid=$!
  wait_for "$base/cluster/health" "$directory/server.log"
}

# One curl process creates all keys over one connection.
fill() {
  local number
  for number in $(seq 0 $((LOAD_KEYS - 1))); do
    [ "$number" = 0 ] || echo next
    printf 'url = "%s/configs"\nfail\nsilent\noutput = "%s/ignored"\n' "$base" "$directory"
    printf 'header = "X-User-Key: %s"\nheader = "Content-Type: application/json"\n' "$user_key"
    printf 'data = "{\\"key\\":\\"load-%s\\",%s\n' "$number" "$(sed 's/^{//; s/"/\\"/g; s/$/"/' <<<"$LOAD_BODY")"
  done >"$directory/fill.curl"
  curl --config "$directory/fill.curl"
}

start_anchor() {
  local port body
  port=$(free_port)
  anchor=http://127.0.0.1:$port
  body=$(curl -sf -H "X-User-Key: $user_key" "$base/configs/load-1")
  cat >"$directory/nginx.conf" <<CONF
daemon off; master_process off; pid $directory/nginx.pid; error_log /dev/null;
events { worker_connections 1024; }
http {
  access_log off; keepalive_requests 100000000;
  server { listen 127.0.0.1:$port; location / { default_type application/json; return 200 '$body'; } }
}
CONF
  "${pin_server[@]}" nginx -c "$directory/nginx.conf" >"$directory/nginx.log" 2>&1 &
  anchor_pid=$!
  wait_for "$anchor/" "$directory/nginx.log"
}

# --- measuring ---------------------------------------------------------------------------------

# User and system time of a process and its threads, in clock ticks. The second field of the line is the
# name in parentheses, which may hold spaces.
cpu_ticks() {
  sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'
}

errors_count=0
rates=()

# measure NAME PID CONNECTIONS URL [wrk options]
measure() {
  local name=$1 pid=$2 count=$3 url=$4 before after
  shift 4
  before=$(cpu_ticks "$pid")
  "${pin_load[@]}" wrk -t1 "-c$count" "-d${seconds}s" --latency -H "X-User-Key: $user_key" "$@" "$url" \
    >"$directory/wrk.out"
  after=$(cpu_ticks "$pid")
  local row
  row=$(awk -v name="$name" -v ticks=$((after - before)) -v ticks_per_second="$(getconf CLK_TCK)" '
    /^ *50%/ { p50 = $2 }
    /^ *99%/ { p99 = $2 }
    /requests in/ { requests = $1 }
    /^Requests\/sec/ { rate = $2 }
    /^Transfer\/sec/ { bytes = $2 }
    /Socket errors/ { gsub(",", ""); errors += $4 + $6 + $8 + $10 }
    /Non-2xx/ { errors += $NF }
    END {
      cpu = requests ? 1e6 * ticks / ticks_per_second / requests : 0
      printf "%-14s %10.0f %10s %10s %12.2f %12s %8d\n", name, rate, p50, p99, cpu, bytes, errors
    }' "$directory/wrk.out")
  echo "$row"
  errors_count=$((errors_count + $(awk '{ print $NF }' <<<"$row")))
  rates+=("$name $(awk '{ print $2, $5 }' <<<"$row")")
}

start_server
fill
have_anchor=false
if command -v nginx >/dev/null; then
  start_anchor
  have_anchor=true
else
  echo "skipped: the anchor (nginx is not installed), so these figures compare with nothing"
fi

echo
printf '%-14s %10s %10s %10s %12s %12s %8s\n' closed\ loop requests/s p50 p99 'CPU us/req' bytes/s errors
if $have_anchor; then measure anchor "$anchor_pid" "$connections" "$anchor/configs/load-1"; fi
measure read "$server_pid" "$connections" "$base/configs/load-1"
measure mixed-95-5 "$server_pid" "$connections" "$base" -s "$here/mixed.lua"
measure write "$server_pid" "$connections" "$base" -s "$here/write.lua"
measure list "$server_pid" 4 "$base/configs"

if $have_anchor; then
  echo
  printf '%s\n' "${rates[@]}" | awk '
    $1 == "anchor" { rate = $2; cpu = $3 }
    $1 == "read" { printf "read / anchor: %.2f of its requests/s, %.2f of its CPU time for each\n", $2 / rate, $3 / cpu }'
fi

echo
if command -v oha >/dev/null; then
  # Latency counts from when a request was due, not from when it could be sent.
  echo "open loop, $rate requests/s for ${seconds}s:"
  "${pin_load[@]}" oha --no-tui -z "${seconds}s" -q "$rate" -c "$connections" --latency-correction \
    -H "X-User-Key: $user_key" "$base/configs/load-1" | sed -nE '/^ *(Success rate|Requests\/sec|(50|99)\.00% in|\[[0-9]+\])/p'
else
  echo "skipped: the open loop (oha is not installed: cargo install oha)"
fi

[ "$errors_count" = 0 ] || fail "$errors_count answers were no 2xx, or connections failed"
