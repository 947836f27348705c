//! The specification of the Node: scripts in `../testscripts`, and a random walk.

mod cluster;
mod disk;
mod script;
mod text;
mod walk;

macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_script_is_run() {
            let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/node/testscripts");
            let mut found: Vec<String> = std::fs::read_dir(dir)
                .expect("scripts")
                .filter_map(|f| f.expect("file").file_name().into_string().ok())
                .filter_map(|f| Some(f.strip_suffix(".txt")?.to_owned()))
                .collect();
            found.sort();
            let mut known = vec![$(stringify!($name).to_owned()),*];
            known.sort();
            assert_eq!(found, known);
        }
    };
}

scripts! {
    basics
    crash_between_commit_and_apply
    forwarding
    h10_lost_log
    h13_snapshot_without_the_receiver
    h15_at_most_one_tick
    h1_removed_leader
    h2_removed_leader_reads
    h3_read_context
    h4_reads_wait
    h5_last_voter
    h5_one_change_at_a_time
    h6_new_term_is_durable_first
    h6b_sole_voter_and_its_tail
    h7_lost_snapshot
    h8_restart
    h9_hostile_messages
    r10_compaction
    r11_snapshot_install
    r12_stalled_disk
    r14_dropped
    r14_figure_8
    r14_snapshot_over_it
    r15_reads
    r17_leader_leaves
    r17_membership
    r17_snapshot_while_membership_changes
    r19_hung_store
    r19_uncommitted_tail
    r2_acks_wait_for_the_disk
    r3_answer_after_apply
    r4_commit_alone_is_no_write
    r7_conf_entries_are_not_applied_twice
    r7_membership_record_first
    stopping
    transfer
}

fn check(name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/node/testscripts")
        .join(format!("{name}.txt"));
    let golden = std::fs::read_to_string(&path).expect("script");
    let now = script::play(&golden);
    if std::env::var_os("RAFTLINE_BLESS").is_some() {
        std::fs::write(&path, now).expect("script is writable");
    } else if now != golden {
        let differ = golden.lines().zip(now.lines()).position(|(a, b)| a != b);
        let at = differ.unwrap_or(golden.lines().count().min(now.lines().count()));
        let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
        panic!(
            "{name}.txt, line {}:\n  expected: {}\n  got:      {}\n\nwhole outcome:\n{now}",
            at + 1,
            line(&golden),
            line(&now),
        );
    }
}
