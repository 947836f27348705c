# shellcheck shell=bash
# A cluster of kv processes on 127.0.0.1, for a script: start and end them, ask them as a user does,
# write, and read back what was acknowledged. To be sourced, with `set -euo pipefail`; the script
# then sets kv (the program) and peers (the flags that name them), and calls choose_ports.

PATIENCE=60 # seconds that anything may take
PAUSE=0.05  # between two looks
BATCH=20    # keys written at each step
READERS=8   # at a time

dir=$(mktemp -d)
declare -A pid=() # node id -> its process
passed=0
writer=
: >"$dir/answer"
: >"$dir/written"
: >"$dir/steady"

# -- how it ends ----------------------------------------------------------------------------------

finish() {
  local code=$?
  trap - EXIT
  stop_writer
  for id in "${!pid[@]}"; do kill -9 "${pid[$id]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if ((code == 0)); then
    rm -rf "$dir"
  else
    printf '%d passed, 1 failed; data and logs of the nodes are kept in %s\n' "$passed" "$dir"
  fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n== %s (after %d s)\n' "$1" "$SECONDS"; }

pass() {
  passed=$((passed + 1))
  printf '   ok  %s\n' "$1"
}

fail() {
  printf '   FAILED  %s\n' "$1" >&2
  exit 1
}

# check WHAT COMMAND..: it must hold now.
check() {
  local what=$1
  shift
  "$@" || fail "$what: $*"
  pass "$what"
}

# soon WHAT COMMAND..: it must hold before the patience ends.
soon() {
  local what=$1 deadline=$((SECONDS + PATIENCE))
  shift
  until "$@"; do
    ((SECONDS < deadline)) ||
      fail "$what, not within $PATIENCE s: $*; the last answer: $(cat "$dir/answer")"
    sleep "$PAUSE"
  done
  pass "$what"
}

# exits CODE TEXT COMMAND..: a program ends with this code, and prints this text.
exits() {
  local wanted=$1 text=$2 code=0
  shift 2
  "$@" >"$dir/answer" 2>&1 || code=$?
  [[ $code == "$wanted" ]] && grep -qF -- "$text" "$dir/answer"
}

# -- nodes ----------------------------------------------------------------------------------------

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets raft, moved and http: addresses without the last digit of the port, which is the node's id.
# They lie below the ports that systems hand out for outgoing connections.
choose_ports() {
  local at tries n
  for ((tries = 0; tries < 100; tries++)); do
    at=$((1000 + RANDOM % 1990))
    for ((n = at * 10; n < at * 10 + 30; n++)); do is_free "$n" || continue 2; done
    raft=127.0.0.1:$at moved=127.0.0.1:$((at + 1)) http=127.0.0.1:$((at + 2))
    return
  done
  fail 'no free ports on 127.0.0.1'
}

# start ID: the same command line for every node and at every start, apart from the id.
start() { start_at "$raft" "$1"; }

# start_at RAFT ID: reached by the others at this address.
start_at() {
  start_as "$2" "$2" --raft-addr "$1{id}" --http-addr "$http{id}" --data-dir "$dir/node-{id}"
}

# start_as NAME ID FLAG..: a process that is called so here.
start_as() {
  local name=$1 id=$2
  shift 2
  "$kv" --id "$id" "${peers[@]}" "$@" >>"$dir/node-$name.log" 2>&1 </dev/null &
  pid[$name]=$!
}

# The machine is gone, at once.
crash() {
  kill -9 "${pid[$1]}"
  wait "${pid[$1]}" 2>/dev/null || true
  unset "pid[$1]"
}

# The process ends as after ctrl-c.
shut_down() {
  kill -TERM "${pid[$1]}"
  ends "$1"
}

# ends ID: waits for the process, which ends by itself; its exit code is in $ended.
ends() {
  local deadline=$((SECONDS + PATIENCE))
  while kill -0 "${pid[$1]}" 2>/dev/null; do
    ((SECONDS < deadline)) || fail "node $1 still runs after $PATIENCE s"
    sleep "$PAUSE"
  done
  ended=0
  wait "${pid[$1]}" || ended=$?
  unset "pid[$1]"
}

# said ID TEXT: the node's log has it.
said() { grep -qF -- "$2" "$dir/node-$1.log"; }

# -- what a user does with curl -------------------------------------------------------------------

at() { printf 'http://%s' "$http$1"; }

# post ID PATH: the HTTP status is in $code, the answer in $dir/answer.
post() {
  code=$(curl -sS --max-time 20 -o "$dir/answer" -w '%{http_code}' -X POST "$(at "$1")$2" \
    2>/dev/null) || code=000
}

# answers CODE ID PATH [TEXT]: a POST gets this status, and an answer with this text.
answers() {
  post "$2" "$3"
  [[ $code == "$1" ]] && grep -qF -- "${4:-}" "$dir/answer"
}

# gets CODE ID PATH: a GET gets this status.
gets() {
  local got
  got=$(curl -sS --max-time 10 -o /dev/null -w '%{http_code}' "$(at "$2")$3" 2>"$dir/answer")
  [[ $got == "$1" ]]
}

# get ID PATH: prints the answer; fails unless it is a success.
get() { curl -sS --fail --max-time 10 "$(at "$1")$2" 2>"$dir/answer"; }

# members ID [FIELD=VALUE..]: the lines of the members that have all these, as this node knows them.
members() {
  local id=$1 lines
  shift
  lines=$(get "$id" '/members?stale') || return 1
  for field in "$@"; do lines=$(grep -E "(^| )$field( |\$)" <<<"$lines" || true); done
  printf '%s' "$lines"
}

# voters ID: their ids, as this node knows them: "1 2 3".
voters() {
  local lines
  lines=$(members "$1" 'role=(voter|leader)') || return 1
  sed -n 's/^id=\([0-9]*\) .*/\1/p' <<<"$lines" | xargs
}

# all_see VOTERS NODE..: every one of these nodes counts these voters, and knows a leader.
all_see() {
  local wanted=$1
  shift
  for id in "$@"; do
    [[ $(voters "$id") == "$wanted" && -n $(members "$id" role=leader) ]] || return 1
  done
}

# leader_at ID: the leader's id as this node knows it; waits for one.
leader_at() {
  local deadline=$((SECONDS + PATIENCE)) line
  until line=$(members "$1" role=leader) && [[ -n $line ]]; do
    ((SECONDS < deadline)) || fail "node $1 knows no leader after $PATIENCE s"
    sleep "$PAUSE"
  done
  line=${line#id=}
  printf '%s' "${line%% *}"
}

# health_has ID TEXT: what the node says of the health of its cluster has this.
# An unavailable one answers 503.
health_has() {
  curl -sS --max-time 10 "$(at "$1")/health" >"$dir/health" 2>"$dir/answer" &&
    grep -qF -- "$2" "$dir/health"
}

# data_dir_of ID MEMBER: the name of its data directory.
data_dir_of() { get "$1" /members | sed -n "s/^id=$2 .*incarnation=\([^ ]*\).*/\1/p"; }

# other LEFT_OUT ID..: the first of these ids that is not left out.
other() {
  local left_out=$1
  shift
  for id in "$@"; do [[ $id == "$left_out" ]] || break; done
  printf '%s' "$id"
}

# -- the data -------------------------------------------------------------------------------------

# put NODE KEY VALUE: prints the HTTP status.
put() {
  curl -sS --max-time 10 -o /dev/null -w '%{http_code}' -X PUT -d "$3" "$(at "$1")/kv/$2" \
    2>/dev/null || true
}

takes_no_write() { [[ $(put "$1" untaken x) == 50[34] ]]; }

# Writes keys one after another, through the nodes in turn, and notes those that were acknowledged.
# The nodes are those of writes_through.
write_on() {
  local n=0 id ids code
  while [[ ! -e $dir/writer-stops ]]; do
    read -ra ids <"$dir/writer-nodes"
    for id in "${ids[@]}"; do
      n=$((n + 1))
      code=$(put "$id" "steady-$n" "s$n")
      [[ $code != 200 ]] || printf 'steady-%d s%d\n' "$n" "$n" >>"$dir/steady"
      sleep "$PAUSE"
    done
  done
}

start_writer() {
  rm -f "$dir/writer-stops"
  write_on &
  writer=$!
}

stop_writer() {
  [[ -n $writer ]] || return 0
  : >"$dir/writer-stops"
  wait "$writer" || true
  writer=
}

# writes_through NODE..: from now on the writer uses these.
writes_through() {
  printf '%s\n' "$*" >"$dir/writer-nodes.new"
  mv "$dir/writer-nodes.new" "$dir/writer-nodes"
}

# write_batch NODE NAME: writes a batch of keys; each must be acknowledged.
write_batch() {
  local n code
  for ((n = 1; n <= BATCH; n++)); do
    code=$(put "$1" "$2-$n" "$2$n")
    [[ $code == 200 ]] || fail "node $1 answered $code to the write of $2-$n"
    printf '%s-%d %s%d\n' "$2" "$n" "$2" "$n" >>"$dir/written"
  done
}

# holds_all NODE FILE: each key in the file, read linearizably through this node, has its value. A
# read that failed is tried again; a wrong or missing value is final.
holds_all() {
  local deadline=$((SECONDS + PATIENCE)) part readers
  rm -f "$dir"/{urls,found,values}.*
  sed "s|^\([^ ]*\) .*|url = $(at "$1")/kv/\1|" "$2" | split -n r/$READERS - "$dir/urls."
  sed 's/^[^ ]* \(.*\)/\1 200/' "$2" | split -n r/$READERS - "$dir/values."
  cat "$dir"/values.* >"$dir/wanted"
  while true; do
    readers=()
    for part in "$dir"/urls.*; do
      curl -sS --max-time "$PATIENCE" -w ' %{http_code}\n' -K "$part" >"${part/urls/found}" \
        2>"$dir/answer" &
      readers+=($!)
    done
    wait "${readers[@]}" || true
    cat "$dir"/found.* >"$dir/found"
    if cmp -s "$dir/wanted" "$dir/found"; then return 0; fi
    if grep -qE ' (200|404)$' <(diff "$dir/wanted" "$dir/found" | grep '^>'); then
      diff "$dir/wanted" "$dir/found" | head -5 >&2
      return 1
    fi
    ((SECONDS < deadline)) || return 1
    sleep "$PAUSE"
  done
}

# verify NAME NODE..: writes a batch through the last of these nodes, and reads all that was ever
# acknowledged through every one.
verify() {
  local name=$1
  shift
  write_batch "${!#}" "$name"
  cat "$dir/written" "$dir/steady" >"$dir/acknowledged"
  for id in "$@"; do
    check "node $id has all $(wc -l <"$dir/acknowledged") acknowledged writes" \
      holds_all "$id" "$dir/acknowledged"
  done
}
