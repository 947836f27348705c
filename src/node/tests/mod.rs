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
