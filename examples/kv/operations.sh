#!/usr/bin/env bash
# The life of a cluster, on real processes: it is founded, grows from 1 to 3 to 5 nodes, machines
# are replaced and moved, it shrinks, loses its majority for good, and is recovered. A client writes
# all the time; after every step each acknowledged write is read back from every node.
#
#   examples/kv/operations.sh [KV ADMIN]      the two programs; without them, cargo builds them
#
# What it does is what docs/operations.md describes, in the same order.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=examples/kv/cluster.sh
source examples/kv/cluster.sh

found_alone() {
  step 'a cluster of one'
  peers=(--peer "${raft}1")
  start 1
  soon 'node 1 founded a cluster, and leads it' all_see 1 1
  check 'its health says so' health_has 1 'healthy'
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
  soon 'node 4 is expected, as a learner' \
    answers 200 2 "/members/add?id=4&addr=${raft}4&learner=1"
  check 'it cannot vote before it is there' \
    answers 409 1 '/members/promote?id=4' 'has not joined'
  start 4
  soon 'node 4 was promoted' answers 200 3 '/members/promote?id=4'
  start 5
  soon 'node 5 was added' answers 200 1 "/members/add?id=5&addr=${raft}5"
  soon 'all count five voters' all_see '1 2 3 4 5' 1 2 3 4 5
  soon 'adding a voter again changes nothing' answers 200 4 "/members/add?id=5&addr=${raft}5"
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
  misses_5() { health_has "$(leader_at 1)" 'not heard from node 5'; }
  soon 'the leader says who is missing' misses_5
  soon 'node 6 is added, as a learner' answers 200 1 "/members/add?id=6&addr=${raft}6&learner=1"
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
  local to leader
  leader=$(leader_at 1)
  to=$(other "$leader" 2 3)
  soon "the leader hands over to node $to" answers 200 1 "/members/transfer?to=$to"
  soon "node $to leads" leads "$to"
  soon 'it hands over to any other' answers 200 4 /members/transfer
  does_not_lead() { ! leads "$to"; }
  soon "node $to leads no more" does_not_lead
  check 'who is no member cannot lead' answers 409 1 '/members/transfer?to=9'
  verify handed 1 2 3 4 6
}

change_many() {
  step 'several members change at once'
  soon '2 and 6 stop voting' answers 200 3 '/members/set?voters=1,3,4&learners=2,6'
  soon 'all count three voters' all_see '1 3 4' 1 2 3 4 6
  soon 'node 4 stops, too' answers 200 1 '/members/demote?id=4'
  soon 'all count two voters' all_see '1 3' 1 2 3 4 6
  verify fewer 1 2 3 4 6
  soon 'all vote again' answers 200 6 '/members/set?voters=1,2,3,4,6'
  soon 'all count five voters' all_see '1 2 3 4 6' 1 2 3 4 6
  verify many 1 2 3 4 6
}

shrink_to_three() {
  step 'from 5 to 3: one is removed, then the leader itself; a third comes and leaves'
  local gone leader rest
  leader=$(leader_at 1)
  gone=$(other "$leader" 4 6)
  mapfile -t rest < <(printf '%s\n' 1 2 3 4 6 | grep -v "$gone")
  writes_through "${rest[@]}"
  soon "node $gone is removed" answers 200 1 "/members/remove?id=$gone"
  ends "$gone"
  check 'its process ends, and says why' said "$gone" 'was removed from the cluster'
  soon 'all count four voters' all_see "${rest[*]}" "${rest[@]}"

  leader=$(leader_at 1)
  mapfile -t left < <(printf '%s\n' "${rest[@]}" | grep -v "$leader")
  writes_through "${left[@]}"
  soon "node $leader, the leader, is removed" answers 200 "${left[0]}" "/members/remove?id=$leader"
  ends "$leader"
  check 'its process ends, and says why' said "$leader" 'was removed from the cluster'
  soon 'all count three voters' all_see "${left[*]}" "${left[@]}"
  verify shrunk "${left[@]}"

  peers=()
  for id in "${left[@]}"; do peers+=(--peer "$raft$id"); done
  start 7
  soon 'node 7 comes' all_see "${left[*]} 7" "${left[@]}" 7
  soon 'and leaves' answers 200 7 /leave
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
  start_at "$moved" "$id"
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
  check 'no write is taken' takes_no_write "$survivor"
  soon 'its health says so' health_has "$survivor" 'unavailable'
  check 'and so does the code of the answer' gets 503 "$survivor" /health
  check 'the tools refuse a directory that is used' \
    exits 1 'locked by another process' "$admin" recover "$dir/node-$survivor" --yes
  shut_down "$survivor"
}

recover() {
  step 'what is left is looked at, and a new cluster is made of it'
  local here=$dir/node-$survivor
  check 'admin inspect: it is sound' exits 0 "node $survivor" "$admin" inspect "$here"
  check 'admin survey: a majority is missing' exits 3 'recover' "$admin" survey "$here"
  check 'admin recover says what it would do' exits 3 'Nothing was changed' "$admin" recover "$here"
  check 'admin recover --yes does it' exits 0 '' "$admin" recover "$here" --yes
  peers=(--peer "$moved$survivor" --peer "${raft}8" --peer "${raft}9")
  start_at "$moved" "$survivor"
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
  check 'it takes no write' takes_no_write "$returned"
  check 'the cluster has not changed' all_see "$survivor 8 9" "$survivor" 8 9
  crash "$returned"
  start "$returned"
  local all
  all=$(printf '%s\n' "$survivor" "$returned" 8 9 | sort -n | xargs)
  soon 'with an empty directory it comes as any other' all_see "$all" "$survivor" "$returned" 8 9
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
