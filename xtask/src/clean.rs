//! `make clean`: removes what the project made on this host outside the checkout.

use crate::demo;
use crate::shell;

pub(crate) fn run() -> anyhow::Result<()> {
    if !demo::vhive_binary().exists() || !demo::state_dir().exists() {
        println!("clean: nothing of the demo is left on this host");
        return Ok(());
    }
    println!("clean: purging {}", demo::state_dir().display());
    shell::run(&mut demo::vhive(&["node", "--purge"]))
}
