# Common functions and settings of the load tests, which source this file.
# shellcheck shell=bash disable=SC2034,SC2164

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
server=${LOAD_SERVER:-$here/../target/release/opensecureconf}
seconds=${LOAD_SECONDS:-4}
connections=${LOAD_CONNECTIONS:-64}
workers=${LOAD_WORKERS:-1}
export LOAD_KEYS=${LOAD_KEYS:-1000}
export LOAD_BODY='{"value":{"host":"prod-server.com","port":5432,"username":"admin","password":"super_secret"},"category":"database"}'
user_key=a-user-key-for-the-load-test

fail() {
  echo "loadtest: $*" >&2
  exit 1
}

# need TOOL...: fails if a tool is missing; each has the name of its Debian package.
need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt-get install $tool)"
  done
  [ -x "$server" ] || fail "$server is missing (cargo build --release --locked)"
}

# --- processes -----------------------------------------------------------------------------------

# begin: creates a directory for all processes; both are cleaned up when the script exits.
begin() {
  directory=$(mktemp -d)
  pids=()
  trap clean_up EXIT
  report_busy "in the second before"
}

clean_up() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" || true; done
  rm -rf "$directory"
}

# stop PID: stops a process before the script exits.
stop() {
  local pid others=()
  for pid in "${pids[@]}"; do [ "$pid" = "$1" ] || others+=("$pid"); done
  pids=("${others[@]}")
  kill -TERM "$1" 2>/dev/null || return 0
  wait "$1" || true
}

# --- placement -----------------------------------------------------------------------------------

# Prints the cores that this process may use, one per line, from a list such as 0-1,4.
cores() {
  local range
  for range in $(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status | tr ',' ' '); do
    seq "${range%-*}" "${range#*-}"
  done
}

# pin WHAT_FIRST WHAT_REST: sets the command prefixes that pin processes to the first core (pin_first), to the second
# one (pin_rest), or to all but the first (pin_others).
pin() {
  mapfile -t usable < <(cores)
  pin_first=()
  pin_rest=()
  pin_others=()
  if [ "${#usable[@]}" -ge 2 ] && command -v taskset >/dev/null; then
    pin_first=(taskset -c "${usable[0]}")
    pin_rest=(taskset -c "${usable[1]}")
    pin_others=(taskset -c "$(IFS=, && echo "${usable[*]:1}")")
    echo "$1: core ${usable[0]}; $2: core ${usable[1]}"
  else
    echo "skipped: pinning (requires taskset and two cores), so these compete for CPU time: $1; $2"
  fi
}

# Reports the CPU time of other programs within a second, because figures of a busy machine are less reliable. Call it
# while no process of this script is under load.
report_busy() {
  local before after
  before=$(head -n 1 /proc/stat)
  sleep 1
  after=$(head -n 1 /proc/stat)
  awk -v when="$1" '{
      total = 0
      for (field = 2; field <= 9; field++) total += $field
      idle = $5 + $6
      if (NR == 1) { first_total = total; first_idle = idle }
    }
    END {
      span = total - first_total
      printf "%s, other programs took %d %% of all cores\n", when, span ? 100 * (1 - (idle - first_idle) / span) : 0
    }' <<<"$before"$'\n'"$after"
}

# Prints a port that is free and was not returned before.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000))
    grep -qsx "$port" "$directory/ports" && continue
    # A refused connection means that the port is free.
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port" | tee -a "$directory/ports"
}

# start NAME PORT COMMAND...: starts a node in a separate directory; the command prefix pins it and may set further
# variables (`env NAME=VALUE`). The node sees no other OSC_* variables. Sets `started` to its process id.
start() {
  local name=$1 port=$2
  shift 2
  mkdir -p "$directory/$name"
  (
    cd "$directory/$name"
    for variable in $(compgen -v OSC_ || true); do unset "$variable"; done
    OSC_HOST=127.0.0.1 OSC_HOST_PORT=$port OSC_WORKERS=$workers OSC_LOG_LEVEL=WARNING OSC_CLUSTER_NODE_ID=$name \
      OSC_FAILED_KEYS_PER_ADDRESS=0 \
      exec "$@" "$server"
  ) >"$directory/$name.log" 2>&1 &
  started=$!
  pids+=("$started")
}

# wait_for URL: waits until a request succeeds.
wait_for() {
  for _ in $(seq 200); do
    curl -sf -o /dev/null "$1" && return
    sleep 0.1
  done
  cat "$directory"/*.log >&2
  fail "no response from $1"
}

# fill BASE [FIRST COUNT [PREFIX]]: creates entries with one curl process over one connection.
fill() {
  local base=$1 first=${2:-0} count=${3:-$LOAD_KEYS} prefix=${4:-load-} number
  for number in $(seq "$first" $((first + count - 1))); do
    [ "$number" = "$first" ] || echo next
    printf 'url = "%s/configs"\nfail\nsilent\noutput = "/dev/null"\n' "$base"
    printf 'header = "X-User-Key: %s"\nheader = "Content-Type: application/json"\n' "$user_key"
    printf 'data = "{\\"key\\":\\"%s%s\\",%s\n' "$prefix" "$number" "$body_rest"
  done >"$directory/fill.curl"
  curl --config "$directory/fill.curl"
}
# The body without its opening brace, as a string in curl's configuration syntax.
body_rest=$(sed 's/^{//; s/"/\\"/g; s/$/"/' <<<"$LOAD_BODY")

# start_nginx BODY: starts an nginx that responds to every request with these bytes. Sets `nginx` and `nginx_pid`.
start_nginx() {
  local port
  port=$(free_port)
  nginx=http://127.0.0.1:$port
  cat >"$directory/nginx.conf" <<CONF
daemon off; master_process off; pid $directory/nginx.pid; error_log /dev/null;
events { worker_connections 1024; }
http {
  access_log off; keepalive_requests 100000000;
  server { listen 127.0.0.1:$port; location / { default_type application/json; return 200 '$1'; } }
}
CONF
  "${pin_first[@]}" nginx -c "$directory/nginx.conf" >"$directory/nginx.log" 2>&1 &
  nginx_pid=$!
  pids+=("$nginx_pid")
  wait_for "$nginx/"
}

resident_mib() { awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }

# --- measuring ---------------------------------------------------------------------------------

# cpu_ticks PID...: prints user and system time of processes with their threads, in clock ticks. The second field of
# `stat` is the name in parentheses, which may contain spaces.
cpu_ticks() {
  local pid
  for pid in "$@"; do sed 's/.*) //' "/proc/$pid/stat"; done | awk '{ ticks += $12 + $13 } END { print ticks }'
}

errors_count=0

# closed_loop NAME PIDS CONNECTIONS URL [wrk options]: runs wrk for LOAD_SECONDS. PIDS are the processes whose CPU time
# is measured, separated by spaces. Prints a row and appends it to `rows`: name, requests/s, p50 and p99 in us, CPU time
# per request in us, MB/s, errors (responses other than 2xx, and connection failures).
closed_loop() {
  local name=$1 measured=$2 count=$3 url=$4 before after row
  shift 4
  # shellcheck disable=SC2086  # one word per process
  before=$(cpu_ticks $measured)
  "${pin_rest[@]}" wrk -t1 "-c$count" "-d${seconds}s" --latency -H "X-User-Key: $user_key" "$@" "$url" \
    >"$directory/wrk.out"
  # shellcheck disable=SC2086
  after=$(cpu_ticks $measured)
  row=$(awk -v name="$name" -v ticks=$((after - before)) -v ticks_per_second="$(getconf CLK_TCK)" \
    -v expected="${expected:-2xx}" '
    function us(text) { return text * (text ~ /us$/ ? 1 : text ~ /ms$/ ? 1e3 : text ~ /m$/ ? 6e7 : 1e6) }
    function mb(text) { return text * (text ~ /GB$/ ? 1e3 : text ~ /MB$/ ? 1 : text ~ /KB$/ ? 1e-3 : 1e-6) }
    /^ *50%/ { p50 = us($2) }
    /^ *99%/ { p99 = us($2) }
    /requests in/ { requests = $1 }
    /^Requests\/sec/ { rate = $2 }
    /^Transfer\/sec/ { bytes = mb($2) }
    /Socket errors/ { gsub(",", ""); errors += $4 + $6 + $8 + $10 }
    /Non-2xx/ { other = $NF }
    END {
      # If another status is expected, 2xx responses are errors.
      errors += expected == "2xx" ? other : requests - other
      cpu = requests ? 1e6 * ticks / ticks_per_second / requests : 0
      print name, rate, p50, p99, cpu, bytes, errors
    }' "$directory/wrk.out")
  rows+=("$row")
  row_of_table <<<"$row"
  errors_count=$((errors_count + ${row##* }))
}

rows=()

# head_of_table WHAT
head_of_table() {
  printf '%-24s %10s %10s %10s %12s %8s %8s\n' "$1" requests/s 'p50 us' 'p99 us' 'CPU us/req' MB/s errors
}

row_of_table() {
  awk '{ printf "%-24s %10.0f %10.0f %10.0f %12.2f %8.1f %8d\n", $1, $2, $3, $4, $5, $6, $7 }'
}

# medians: prints the rows with the median of each column, in the order of their first appearance.
medians() {
  printf '%s\n' "${rows[@]}" | awk "$awk_median"'
    !($1 in count) { order[++names] = $1 }
    { count[$1]++; for (field = 2; field <= 7; field++) values[$1, field, count[$1]] = $field }
    END {
      for (i = 1; i <= names; i++) {
        name = order[i]
        line = name
        for (field = 2; field <= 7; field++) {
          for (j = 1; j <= count[name]; j++) list[j] = values[name, field, j]
          line = line " " median(list, count[name])
        }
        print line
      }
    }' | row_of_table
}

# quotient NAME BASELINE FIELD: prints the median of the ratios of each round. FIELD is the number of a field of a row:
# 2 for requests/s, 5 for CPU time.
quotient() {
  printf '%s\n' "${rows[@]}" | awk -v name="$1" -v of="$2" -v field="$3" "$awk_median"'
    $1 == name { above[++above_count] = $field }
    $1 == of { below[++below_count] = $field }
    END {
      for (i = 1; i <= above_count && i <= below_count; i++) if (below[i] > 0) list[++found] = above[i] / below[i]
      if (found) printf "%.2f", median(list, found); else printf "-"
    }'
}

# shellcheck disable=SC2016
awk_median='
  function median(list, count,    i, j, kept) {
    for (i = 2; i <= count; i++) {
      kept = list[i]
      for (j = i - 1; j >= 1 && list[j] > kept; j--) list[j + 1] = list[j]
      list[j + 1] = kept
    }
    return count % 2 ? list[(count + 1) / 2] : (list[count / 2] + list[count / 2 + 1]) / 2
  }'

judge() {
  report_busy "in the second after"
  [ "$errors_count" = 0 ] || fail "$errors_count responses had an unexpected status, or connections failed"
}
