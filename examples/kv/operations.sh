#!/usr/bin/env bash
# The life of a cluster, on real processes: it is founded, grows from 1 to 3 to 5 nodes, machines are
# replaced and moved, it shrinks, loses its majority for good, and is recovered. A client writes all
# the time; after every step each acknowledged write is read back from every node.
#
#   examples/kv/operations.sh [KV ADMIN]      the two programs; without them, cargo builds them
#
# What it does is what docs/operations.md describes, in the same order.
set -euo pipefail
cd "$(dirname "$0")/../.."

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

# -- how it ends ------------------------------------------------------------------------------------

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
    ((SECONDS < deadline)) || fail "$what, not within $PATIENCE s: $*; the last answer: $(cat "$dir/answer")"
    sleep "$PAUSE"
  done
  pass "$what"
}

# -- nodes ------------------------------------------------------------------------------------------

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets raft, moved and http: the first four digits of ports, of which 1 to 9 are free. The fifth is the
# id. They lie below the ports that systems hand out for outgoing connections.
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
start() { start_as "$1" "$1" --raft-addr "$raft{id}" --http-addr "$http{id}" --data-dir "$dir/node-{id}"; }

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

# -- what a user does with curl ---------------------------------------------------------------------

at() { printf 'http://%s' "$http$1"; }

# post ID PATH: the HTTP status is in $code, the answer in $dir/answer.
post() {
  code=$(curl -sS --max-time 20 -o "$dir/answer" -w '%{http_code}' -X POST "$(at "$1")$2" 2>/dev/null) ||
    code=000
}

# answers CODE ID PATH [TEXT]: a POST gets this status, and an answer with this text.
answers() {
  post "$2" "$3"
  [[ $code == "$1" ]] && grep -qF -- "${4:-}" "$dir/answer"
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
  sed 's/^id=\([0-9]*\) .*/\1/' <<<"$line"
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

# -- the data ---------------------------------------------------------------------------------------

put() { curl -sS --max-time 10 -o /dev/null -w '%{http_code}' -X PUT -d "$3" "$(at "$1")/kv/$2" 2>/dev/null || true; }

# Writes keys one after another, through the nodes in turn, and notes those that were acknowledged. The
# nodes are those named in a file, read anew for every key.
write_on() {
  local n=0 id ids
  while [[ ! -e $dir/writer-stops ]]; do
    read -ra ids <"$dir/writer-nodes"
    for id in "${ids[@]}"; do
      n=$((n + 1))
      [[ $(put "$id" "steady-$n" "s$n") != 200 ]] || printf 'steady-%d s%d\n' "$n" "$n" >>"$dir/steady"
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
      curl -sS --max-time "$PATIENCE" -w ' %{http_code}\n' -K "$part" >"${part/urls/found}" 2>"$dir/answer" &
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

# -- the walk ---------------------------------------------------------------------------------------

found_alone() {
  step 'a cluster of one'
  peers=(--peer "${raft}1")
  start 1
  soon 'node 1 founded a cluster, and leads it' all_see 1 1
  check 'its health says so' grep -q '^healthy' <(get 1 /health)
  writes_through 1
  start_writer
  check 'the last voter may not be removed' answers 409 1 '/members/remove?id=1' 'last voter'
  check 'a request without a node id is refused with what to write' \
    answers 400 1 /members/remove 'say which node: id=4'
  check 'an address that is none is refused with what to write' \
    answers 400 1 '/members/add?id=2&addr=nowhere' 'addr=HOST:PORT'
  check 'who is no member cannot be promoted' answers 409 1 '/members/promote?id=9' 'no member'
  verify one 1
}

grow_to_three() {
  step 'from 1 to 3: two empty nodes are started'
  # From here on the list names more than one node, and is the same everywhere.
  peers=(--peer "${raft}1" --peer "${raft}2" --peer "${raft}3")
  start 2
  start 3
  soon 'nodes 2 and 3 came by themselves, caught up, and vote' all_see '1 2 3' 1 2 3
  writes_through 1 2 3
  verify three 1 2 3
}

grow_to_five() {
  step 'from 3 to 5: one added by name first, one that waits to be promoted'
  check 'node 4 is expected, as a learner' \
    answers 200 2 "/members/add?id=4&addr=${raft}4&learner=1"
  check 'it cannot vote before it is there' \
    answers 409 1 '/members/promote?id=4' 'has not joined'
  start 4
  soon 'node 4 was promoted' answers 200 3 '/members/promote?id=4'
  start 5
  soon 'node 5 was added' answers 200 1 "/members/add?id=5&addr=${raft}5"
  soon 'all count five voters' all_see '1 2 3 4 5' 1 2 3 4 5
  check 'adding a voter again changes nothing' answers 200 4 "/members/add?id=5&addr=${raft}5"
  writes_through 1 2 3 4 5
  verify five 1 2 3 4 5
}

refuse_mistyped_id() {
  step 'a new machine is started with the id of another'
  local before
  before=$(data_dir_of 1 2)
  # It has a directory, and ports, of its own.
  start_as mistyped 2 --raft-addr "${moved}9" --http-addr "${http}9" --data-dir "$dir/mistyped"
  ends mistyped
  check 'it ends with an error' test "$ended" -ne 0
  check 'which says that there is such a member' said mistyped 'node 2 is a member already'
  check 'node 2 is who it was' test "$(data_dir_of 1 2)" == "$before"
  verify mistyped 1 2 3 4 5
}

replace_machine() {
  step 'machine 5 is lost, machine 6 takes its place'
  writes_through 1 2 3 4
  crash 5
  rm -r "$dir/node-5"
  check 'node 6 is added, as a learner' answers 200 1 "/members/add?id=6&addr=${raft}6&learner=1"
  start 6
  soon 'node 6 replaced node 5' answers 200 2 '/members/replace?old=5&new=6'
  soon 'all count the new one' all_see '1 2 3 4 6' 1 2 3 4 6
  writes_through 1 2 3 4 6
  verify replaced 1 2 3 4 6
}

readmit_wiped() {
  step 'machine 3 loses its disk, and is started with an empty one'
  local before
  before=$(data_dir_of 1 3)
  writes_through 1 2 4 6
  crash 3
  rm -r "$dir/node-3"
  start 3
  readmitted() { [[ $(data_dir_of 1 3) != "$before" ]] && all_see '1 2 3 4 6' 1 2 3 4 6; }
  soon 'node 3 was let in again, as another directory, and votes' readmitted
  writes_through 1 2 3 4 6
  verify wiped 1 2 3 4 6
}

hand_over() {
  step 'leadership is handed over'
  leads() { [[ $(leader_at 1) == "$1" ]]; }
  local to
  to=$(other "$(leader_at 1)" 2 3)
  check "the leader hands over to node $to" answers 200 1 "/members/transfer?to=$to"
  soon "node $to leads" leads "$to"
  check 'it hands over to any other' answers 200 4 /members/transfer
  does_not_lead() { ! leads "$to"; }
  soon "node $to leads no more" does_not_lead
  check 'who is no member cannot lead' answers 409 1 '/members/transfer?to=9'
  verify handed 1 2 3 4 6
}

change_many() {
  step 'several members change at once'
  check '2 and 6 stop voting' answers 200 3 '/members/set?voters=1,3,4&learners=2,6'
  soon 'all count three voters' all_see '1 3 4' 1 2 3 4 6
  check 'node 4 stops, too' answers 200 1 '/members/demote?id=4'
  soon 'all count two voters' all_see '1 3' 1 2 3 4 6
  verify fewer 1 2 3 4 6
  soon 'all vote again' answers 200 6 '/members/set?voters=1,2,3,4,6'
  soon 'all count five voters' all_see '1 2 3 4 6' 1 2 3 4 6
  verify many 1 2 3 4 6
}

shrink_to_three() {
  step 'from 5 to 3: one is removed, then the leader itself; a third comes and leaves'
  local gone leader rest
  gone=$(other "$(leader_at 1)" 4 6)
  mapfile -t rest < <(printf '%s\n' 1 2 3 4 6 | grep -v "$gone")
  writes_through "${rest[@]}"
  check "node $gone is removed" answers 200 1 "/members/remove?id=$gone"
  ends "$gone"
  check 'its process ends, and says why' said "$gone" 'was removed from the cluster'
  soon 'all count four voters' all_see "${rest[*]}" "${rest[@]}"

  leader=$(leader_at 1)
  mapfile -t left < <(printf '%s\n' "${rest[@]}" | grep -v "$leader")
  writes_through "${left[@]}"
  check "node $leader, the leader, is removed" answers 200 "${left[0]}" "/members/remove?id=$leader"
  ends "$leader"
  check 'its process ends, and says why' said "$leader" 'was removed from the cluster'
  soon 'all count three voters' all_see "${left[*]}" "${left[@]}"
  verify shrunk "${left[@]}"

  peers=()
  for id in "${left[@]}"; do peers+=(--peer "$raft$id"); done
  start 7
  soon 'node 7 comes' all_see "${left[*]} 7" "${left[@]}" 7
  check 'and leaves' answers 200 7 /leave
  ends 7
  check 'its process ends without an error' test "$ended" -eq 0
  soon 'all count three voters' all_see "${left[*]}" "${left[@]}"
  verify left "${left[@]}"
}

move_machine() {
  step "machine ${left[0]} moves to another address"
  local id=${left[0]}
  writes_through "${left[1]}" "${left[2]}"
  shut_down "$id"
  check 'its process ends without an error' test "$ended" -eq 0
  start_as "$id" "$id" --raft-addr "$moved{id}" --http-addr "$http{id}" --data-dir "$dir/node-{id}"
  has_moved() { [[ -n $(members "${left[1]}" "id=$id" "addr=$moved$id") ]]; }
  soon 'the others have its new address' has_moved
  soon 'and it votes' all_see "${left[*]}" "${left[@]}"
  writes_through "${left[@]}"
  verify moved "${left[@]}"
}

lose_the_majority() {
  step "two of three machines are lost for good; ${left[0]} is left"
  survivor=${left[0]} returned=${left[1]}
  stop_writer
  cat "$dir/written" "$dir/steady" >"$dir/acknowledged"
  check 'the one that is left has all acknowledged writes' holds_all "$survivor" "$dir/acknowledged"
  crash "${left[1]}"
  crash "${left[2]}"
  # One disk turns up again much later.
  mv "$dir/node-$returned" "$dir/node-returned"
  rm -r "$dir/node-${left[2]}"
  is_refused() { [[ $(put "$survivor" lost-1 x) == 50[34] ]]; }
  check 'no write is taken' is_refused
  check 'the tools refuse a directory that is used' \
    exits 1 'locked by another process' "$admin" recover "$dir/node-$survivor" --yes
  shut_down "$survivor"
}

# exits CODE TEXT COMMAND..: a program ends with this code, and prints this text.
exits() {
  local wanted=$1 text=$2 code=0
  shift 2
  "$@" >"$dir/answer" 2>&1 || code=$?
  [[ $code == "$wanted" ]] && grep -qF -- "$text" "$dir/answer"
}

recover() {
  step 'what is left is looked at, and a new cluster is made of it'
  local here=$dir/node-$survivor
  check 'admin inspect: it is sound' exits 0 "node $survivor" "$admin" inspect "$here"
  check 'admin survey: a majority is missing' exits 3 'recover' "$admin" survey "$here"
  check 'admin recover says what it would do' exits 3 'Nothing was changed' "$admin" recover "$here"
  check 'admin recover --yes does it' exits 0 '' "$admin" recover "$here" --yes
  peers=(--peer "$moved$survivor" --peer "${raft}8" --peer "${raft}9")
  start_as "$survivor" "$survivor" --raft-addr "$moved{id}" --http-addr "$http{id}" \
    --data-dir "$dir/node-{id}"
  soon 'the node leads a cluster of one' all_see "$survivor" "$survivor"
  verify recovered "$survivor"
  start 8
  start 9
  soon 'nodes 8 and 9 came, and vote' all_see "$survivor 8 9" "$survivor" 8 9
  verify regrown "$survivor" 8 9
}

refuse_returned() {
  step "machine $returned turns up again, with the disk of the old cluster"
  start_as "$returned" "$returned" --raft-addr "$raft{id}" --http-addr "$http{id}" \
    --data-dir "$dir/node-returned"
  turned_away() { said "$returned" 'this is cluster'; }
  soon 'the others turn it away, and say which cluster they are' turned_away
  is_refused() { [[ $(put "$returned" old-1 x) == 50[34] ]]; }
  check 'it takes no write' is_refused
  check 'and no membership change' test "$(voters 9)" == "$(voters "$survivor")"
  crash "$returned"
  start "$returned"
  soon 'with an empty directory it comes as any other' \
    all_see "$(printf '%s\n' "$survivor" "$returned" 8 9 | sort -n | xargs)" "$survivor" "$returned" 8 9
  verify returned "$survivor" "$returned" 8 9
}

case $# in
0)
  cargo build --locked --example kv --example admin
  kv=${CARGO_TARGET_DIR:-target}/debug/examples/kv
  admin=${CARGO_TARGET_DIR:-target}/debug/examples/admin
  ;;
2) kv=$1 admin=$2 ;;
*) fail "usage: $0 [KV ADMIN]" ;;
esac
for program in "$kv" "$admin" "$(command -v curl || echo curl)"; do
  [[ -x $program ]] || fail "$program cannot be run"
done

choose_ports
found_alone
grow_to_three
grow_to_five
refuse_mistyped_id
replace_machine
readmit_wiped
hand_over
change_many
shrink_to_three
move_machine
lose_the_majority
recover
refuse_returned

step 'done'
printf '%d passed, 0 failed\n' "$passed"
