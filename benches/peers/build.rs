//! Tells the programs which compiler made them.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("-V").output().map(|out| out.stdout).unwrap_or_default();
    println!("cargo:rustc-env=RUSTC_VERSION={}", String::from_utf8_lossy(&said).trim());
    println!("cargo:rustc-env=BUILT_WITH={}", std::env::var("OPT_LEVEL").unwrap_or_default());
}
