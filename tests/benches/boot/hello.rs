//! The demo's `hello` as a root file system and a process.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vhive_api::guest::Process;
use vhive_image::{ImageStore, Progress};

/// The demo's image, as the store makes it.
pub(crate) fn hello(store: &Path, port: u16) -> Result<(PathBuf, Process)> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions/hello");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
    let (image, rootfs) = runtime.block_on(async {
        let store = ImageStore::open(store)?;
        let image = store.build(&recipe, None, Progress::default()).await?;
        let rootfs = store.rootfs(&image.digest).await?;
        anyhow::Ok((image, rootfs))
    })?;
    let config = image.config;
    let mut env: Vec<String> = config.env.iter().map(|(n, v)| format!("{n}={v}")).collect();
    env.push(format!("PORT={port}"));
    let process = Process {
        args: [config.entrypoint, config.cmd].concat(),
        env,
        user: config.user,
        cwd: config.working_dir,
        stop_signal: config.stop_signal.unwrap_or_default(),
        ..Process::default()
    };
    Ok((rootfs.path, process))
}
