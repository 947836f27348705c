//! Runs a script and writes down what happened.
//!
//! A script is text: `#` lines say the rule, then blocks of commands, `---`, and what came of
//! them, up to an empty line. `RAFTLINE_BLESS=1` writes the outcome into the file. The commands
//! are those of [`Script::run`]; nodes are named by node id.

use std::fmt::Write as _;

use super::calls::Answer;
use super::cluster::{Cluster, Packet, addr, incarnation};
use super::text;
use crate::node::event::{Change, Event, Freshness};
use crate::types::{NodeId, Progress};

pub(super) struct Script {
    cluster: Cluster,
    out: String,
    reads: usize,
    durable: bool,
}

/// Runs a whole script; gives it back with its outcome.
pub(super) fn play(script: &str) -> String {
    let mut s = Script { cluster: Cluster::new(1), out: String::new(), reads: 0, durable: false };
    let mut whole = String::new();
    let mut blocks = script.split("\n\n");
    let head = blocks.next().unwrap_or_default().trim_end();
    assert!(head.starts_with('#'), "a script begins with its rule in words");
    whole.push_str(head);
    whole.push('\n');
    for block in blocks.filter(|b| !b.trim().is_empty()) {
        let commands: Vec<&str> =
            block.lines().take_while(|l| *l != "---").filter(|l| !l.is_empty()).collect();
        for command in commands.iter().filter(|c| !c.starts_with('#')) {
            s.run(command);
            s.report_answers();
        }
        let _ = write!(whole, "\n{}\n---\n", commands.join("\n"));
        let out = std::mem::take(&mut s.out);
        whole.push_str(if out.is_empty() { "ok\n" } else { &out });
    }
    whole
}

/// Which packets a command means: `from=1 to=2 type=Append n=1`.
#[derive(Debug, Default)]
struct Which {
    from: Option<NodeId>,
    to: Option<NodeId>,
    kind: Option<String>,
    n: Option<usize>,
}

impl Which {
    fn parse(words: &[&str]) -> Self {
        let mut out = Self::default();
        for (key, value) in words.iter().filter_map(|w| w.split_once('=')) {
            match key {
                "from" => out.from = value.parse().ok(),
                "to" => out.to = value.parse().ok(),
                "type" => out.kind = Some(value.to_owned()),
                "n" => out.n = value.parse().ok(),
                _ => panic!("no selector {key}"),
            }
        }
        out
    }

    fn fits(&self, p: &Packet) -> bool {
        self.from.is_none_or(|f| f == p.from)
            && self.to.is_none_or(|t| t == p.to)
            && self.kind.as_ref().is_none_or(|k| *k == text::kind(&p.load))
    }
}

fn number(words: &[&str], i: usize) -> u64 {
    words.get(i).and_then(|w| w.parse().ok()).unwrap_or_else(|| panic!("no number in {words:?}"))
}

fn list(ids: &str) -> Vec<NodeId> {
    ids.split(',').filter_map(|id| id.parse().ok()).collect()
}

fn option(words: &[&str], key: &str) -> Option<u64> {
    words.iter().filter_map(|w| w.split_once('=')).find(|(k, _)| *k == key)?.1.parse().ok()
}

impl Script {
    fn line(&mut self, text: impl std::fmt::Display) {
        let _ = writeln!(self.out, "{text}");
    }

    fn run(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let name = words[0];
        match name {
            "config" => self.config(&words[1..]),
            "nodes" => {
                self.durable = words.contains(&"durable");
                self.cluster.found(number(&words, 1), self.durable);
            }
            "campaign" | "age" | "tick" | "run" | "crash" | "restart" | "restart-held"
            | "lose-log" | "stop" => {
                self.clock(&words);
            }
            "propose" | "queue" | "read" | "join" | "remove" | "update" | "transfer" | "resign"
            | "give-up" | "add-learner" | "add-voter" | "promote" | "demote" | "replace"
            | "set" | "describe" | "leave" => {
                self.request(command, &words);
            }
            "wipe" => self.cluster.wipe(number(&words, 1)),
            "hold-disk" | "release-disk" | "sync" | "hold-store" | "release-store" | "apply"
            | "rot" => {
                self.storage(&words);
            }
            "deliver" | "drop" | "dup" | "reverse" | "stabilize" | "cut" | "isolate" | "heal"
            | "beat" | "batch" => self.network(&words),
            "status" | "log" | "disk" | "store" | "net" | "members" | "peers" | "health" => {
                self.show(&words);
            }
            "hostile" => self.hostile(&words),
            "snapshot-fails" => self.cluster.event(number(&words, 1), Event::SnapshotFailed),
            _ => panic!("no command {command:?}"),
        }
    }

    fn config(&mut self, words: &[&str]) {
        for (key, value) in words.iter().filter_map(|w| w.split_once('=')) {
            let value: u64 = value.parse().expect("a number");
            let c = &mut self.cluster.config;
            match key {
                "snapshot_entries" => c.snapshot_entries = value,
                "trailing" => c.snapshot_trailing_entries = value,
                "max_apply_lag" => c.max_apply_lag = value,
                "max_size_per_msg" => c.max_size_per_msg = value,
                "max_committed" => c.max_committed_size_per_ready = value,
                "min_members" => c.min_members = value as usize,
                "max_inflight_msgs" => c.max_inflight_msgs = value as usize,
                _ => panic!("no setting {key}"),
            }
        }
    }

    fn clock(&mut self, words: &[&str]) {
        let ids: Vec<NodeId> = words[1..].iter().filter_map(|w| w.parse().ok()).collect();
        match words[0] {
            "campaign" => {
                // As if its election timeout had passed; `tick` shows when it may not.
                let id = ids[0];
                let _ = self.cluster.node(id).raw.campaign();
                self.cluster.node(id).settle();
                self.cluster.drive(id);
            }
            "age" => {
                // They have not heard from a leader for so long that the next tick is too much.
                for id in ids {
                    self.cluster.node(id).raw.raft.election_elapsed = 19;
                }
            }
            "tick" => {
                let count = words.get(2).map_or(1, |_| number(words, 2));
                let ids = if words[1] == "all" { self.cluster.up() } else { vec![ids[0]] };
                for _ in 0..count {
                    ids.iter().for_each(|id| self.cluster.event(*id, Event::Tick));
                }
            }
            "crash" => ids.into_iter().for_each(|id| self.cluster.crash(id)),
            "run" => self.cluster.tick_all(ids[0] as usize),
            "lose-log" => {
                let keep = |e: &crate::types::Entry| e.index < ids[1];
                self.cluster.at(ids[0]).disk.entries.retain(keep);
            }
            "restart" | "restart-held" => {
                for id in ids {
                    self.cluster.at(id).disk_held = words[0] == "restart-held";
                    if let Err(error) = self.cluster.start(id) {
                        self.line(format_args!("node {id} refuses to start: {error}"));
                    }
                }
            }
            _ => self.cluster.event(ids[0], Event::Stop),
        }
    }

    fn request(&mut self, command: &str, words: &[&str]) {
        match words[0] {
            "give-up" => {
                self.cluster.calls.retain(|c| c.name != command["give-up ".len()..]);
                return;
            }
            "read" => {
                self.reads += 1;
                let freshness = match (words.contains(&"stale"), option(words, "at-least")) {
                    (true, _) => Freshness::Stale,
                    (false, Some(index)) => Freshness::AtLeast(index),
                    (false, None) => Freshness::Linearizable,
                };
                let name = format!("read {}", self.reads);
                self.cluster.read(number(words, 1), freshness, name);
            }
            "queue" => {
                // Taken in together with the next event.
                return self.cluster.propose(number(words, 1), words[2]);
            }
            "propose" => {
                words[2..].iter().for_each(|c| self.cluster.propose(number(words, 1), c));
            }
            "resign" => self.cluster.resign(number(words, 1), command.to_owned()),
            "transfer" => {
                let to = words[2].parse().ok();
                self.cluster.transfer(number(words, 1), to, command.to_owned());
            }
            _ => {
                let id = if words[0] == "set" { 0 } else { number(words, 2) };
                let generation = option(words, "generation").unwrap_or(0);
                let at = words.iter().find_map(|w| w.strip_prefix("addr="));
                let addr = at.map_or_else(|| addr(id), str::to_owned);
                let incarnation = incarnation(id, generation);
                let metadata = || words.iter().find_map(|w| w.strip_prefix("metadata="));
                let ids = |key| {
                    words.iter().find_map(|w| w.strip_prefix(key)).map_or_else(Vec::new, list)
                };
                let change = match words[0] {
                    "join" => {
                        let voter = !words.contains(&"learner-only");
                        Change::Join { node_id: id, incarnation, addr, voter }
                    }
                    "add-learner" => Change::AddLearner { node_id: id, addr },
                    "add-voter" => {
                        let added = words.contains(&"added");
                        Change::AddVoter { node_id: id, addr, added }
                    }
                    "leave" => Change::Leave { node_id: id, incarnation },
                    "promote" => Change::Promote { node_id: id },
                    "demote" => Change::Demote { node_id: id },
                    "replace" => Change::Replace { old: id, new: number(words, 3) },
                    "set" => Change::Set { voters: ids("voters="), learners: ids("learners=") },
                    "describe" => Change::Describe {
                        node_id: id,
                        addr: at.map(str::to_owned),
                        metadata: metadata().map(|m| m.to_owned().into()),
                    },
                    "remove" => Change::Remove { node_id: id },
                    _ => Change::Update { node_id: id, incarnation, addr },
                };
                self.cluster.change(number(words, 1), change, command.to_owned());
            }
        }
        self.cluster.drive(number(words, 1));
    }

    fn storage(&mut self, words: &[&str]) {
        let id = number(words, 1);
        match words[0] {
            "hold-disk" => self.cluster.at(id).disk_held = true,
            "release-disk" => self.cluster.at(id).disk_held = false,
            "hold-store" => self.cluster.at(id).store_held = true,
            "release-store" => self.cluster.at(id).store_held = false,
            "rot" => self.cluster.at(id).disk.rot(),
            "sync" => {
                let count = words.get(2).map_or(usize::MAX, |_| number(words, 2) as usize);
                self.cluster.sync(id, count);
            }
            _ => {
                let count = words.get(2).map_or(usize::MAX, |_| number(words, 2) as usize);
                self.cluster.run_store(id, count);
            }
        }
        self.cluster.drive(id);
    }

    /// Takes the packets out that a command means.
    fn pick(&mut self, which: &Which) -> Vec<Packet> {
        let mut left = which.n.unwrap_or(usize::MAX);
        let (mut out, mut rest) = (Vec::new(), std::collections::VecDeque::new());
        for p in std::mem::take(&mut self.cluster.net) {
            if left > 0 && which.fits(&p) {
                left -= 1;
                out.push(p);
            } else {
                rest.push_back(p);
            }
        }
        self.cluster.net = rest;
        out
    }

    fn network(&mut self, words: &[&str]) {
        let c = &mut self.cluster;
        match words[0] {
            "stabilize" => c.stabilize(),
            "beat" => {
                c.event(number(words, 1), Event::Tick);
                c.event(number(words, 1), Event::Tick);
                c.stabilize();
            }
            "reverse" => c.net.make_contiguous().reverse(),
            "heal" => c.cut.clear(),
            "isolate" => {
                let id = number(words, 1);
                let ids: Vec<NodeId> = c.machines.keys().copied().filter(|n| *n != id).collect();
                c.cut.extend(ids.into_iter().flat_map(|n| [(n, id), (id, n)]));
            }
            "cut" => match words[1].split_once('>') {
                Some((a, b)) => {
                    c.cut.insert((a.parse().expect("id"), b.parse().expect("id")));
                }
                None => {
                    let (a, b) = (number(words, 1), number(words, 2));
                    c.cut.extend([(a, b), (b, a)]);
                }
            },
            "dup" => {
                let which = Which::parse(&words[1..]);
                let copies: Vec<Packet> =
                    c.net.iter().filter(|p| which.fits(p)).filter_map(text::copy).collect();
                c.net.extend(copies);
            }
            _ => self.hand_over(words),
        }
    }

    /// `deliver` looks at each receiver after each packet, `batch` once at the end.
    fn hand_over(&mut self, words: &[&str]) {
        let picked = self.pick(&Which::parse(&words[1..]));
        let touched: Vec<NodeId> = picked.iter().flat_map(|p| [p.to, p.from]).collect();
        for p in picked {
            let (from, to) = (p.from, p.to);
            if words[0] == "drop" {
                self.cluster.lose(p);
            } else {
                self.cluster.deliver(p);
            }
            if words[0] != "batch" {
                for id in [to, from] {
                    if self.cluster.is_up(id) {
                        self.cluster.drive(id);
                    }
                }
            }
        }
        for id in touched {
            if self.cluster.is_up(id) {
                self.cluster.drive(id);
            }
        }
    }

    fn show(&mut self, words: &[&str]) {
        let ids: Vec<NodeId> = match words.get(1) {
            Some(_) => words[1..].iter().filter_map(|w| w.parse().ok()).collect(),
            None => self.cluster.machines.keys().copied().collect(),
        };
        if words[0] == "net" {
            let lines: Vec<String> = self.cluster.net.iter().map(text::packet).collect();
            lines.into_iter().for_each(|l| self.line(l));
            if self.cluster.net.is_empty() {
                self.line("nothing is under way");
            }
            return;
        }
        for id in ids {
            let m = &self.cluster.machines[&id];
            let line = match words[0] {
                "status" => text::status(id, m),
                "log" => text::log(id, m),
                "disk" => text::disk(id, m),
                "store" => {
                    format!("store {id}: applied {}: {}", m.store.applied, m.store.state.join(" "))
                }
                "health" => format!(
                    "node {id}: {}",
                    m.node.as_ref().map_or("down".into(), |n| n.status().health)
                ),
                "peers" => text::peers(id, m),
                _ => text::members(id, m),
            };
            self.line(line);
        }
    }

    fn hostile(&mut self, words: &[&str]) {
        let id = number(words, 1);
        let term = self.cluster.node(id).raw.raft.term;
        let message = text::hostile(&words[2..], id, term);
        let before = self.cluster.node(id).refused_messages;
        let from = message.from();
        self.cluster.event(id, Event::Message { from, message });
        let after = self.cluster.machines[&id].node.as_ref().map(|n| n.refused_messages);
        let outcome = match after {
            Some(n) if n > before => format!("refused, {n} so far"),
            Some(_) => "not refused".to_owned(),
            None => "the node stopped".to_owned(),
        };
        self.line(outcome);
    }

    /// Writes down what calls came to; starts a machine that was let in.
    fn report_answers(&mut self) {
        for (call, answer) in self.cluster.answers() {
            let text = match &answer {
                Ok(Answer::Applied(a)) => {
                    let data = String::from_utf8_lossy(&a.data);
                    if call.name.starts_with("read") {
                        format!("index {}: {data}", a.index)
                    } else {
                        format!("applied at {}", a.index)
                    }
                }
                Ok(Answer::Members(m, progress)) => {
                    let how = match progress {
                        Progress::Done => "done".to_owned(),
                        Progress::Expected => "expected".to_owned(),
                        Progress::CatchingUp { matched, last } => {
                            format!("catching up, {matched} of {last}")
                        }
                    };
                    format!("{how}, {}", text::membership(m))
                }
                Ok(Answer::Done) => "done".to_owned(),
                Err(error) => format!("{:?}: {error}", error.outcome()),
            };
            self.line(format_args!("{} -> {text}", call.name));
            if let (Ok(Answer::Members(m, _)), Some((id, incarnation))) = (&answer, call.joins) {
                let raft_id = m.by_incarnation(id, incarnation).expect("it joined").raft_id;
                if !self.cluster.machines.contains_key(&id) {
                    self.cluster.add(id, raft_id, incarnation, self.durable);
                }
            }
        }
        let stopped: Vec<(NodeId, String)> = self
            .cluster
            .machines
            .iter_mut()
            .filter_map(|(id, m)| Some((*id, m.fatal.take()?)))
            .collect();
        for (id, why) in stopped {
            self.line(format_args!("node {id} stops: {why}"));
        }
    }
}
