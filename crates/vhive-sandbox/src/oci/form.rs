//! Who is a container's first process: the one place where that is decided.

use crate::runtime::SandboxSpec;

/// A container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstProcess {
    /// `vhive-init`, which starts the function.
    Init,
    /// The function itself.
    Function,
}

/// The function itself under gVisor, where one more process and one more program cost tens of
/// milliseconds, unless something is wanted that only an init inside can do: to get ready for a
/// snapshot and to be somebody else after it, to run commands beside the function, to write its
/// files.
pub(super) fn first_process(is_gvisor: bool, spec: &SandboxSpec) -> FirstProcess {
    let hooks = &spec.hooks;
    let hooked = hooks.before_snapshot.is_some() || hooks.after_restore.is_some();
    let needs = spec.uses.snapshots || spec.uses.commands || hooked;
    if !is_gvisor || needs || !spec.process.volumes.is_empty() {
        FirstProcess::Init
    } else {
        FirstProcess::Function
    }
}

#[cfg(test)]
mod tests {
    use vhive_api::guest::{Hooks, Process, Volume};
    use vhive_api::{Bytes, SandboxId};

    use super::*;
    use crate::journal::Journal;
    use crate::run_dir::RunRoot;
    use crate::runtime::{Guest, Uses};

    #[test]
    fn init_is_where_it_is_needed_and_nowhere_else() {
        let dir = std::path::Path::new("/nowhere");
        let spec = SandboxSpec {
            guest: Guest::default(),
            id: SandboxId::random(),
            rootfs: dir.to_owned(),
            process: Process::default(),
            hooks: Hooks::default(),
            uses: Uses::default(),
            port: 1,
            cpu_millis: 1000,
            memory: Bytes::mib(64),
            network: None,
            run_root: RunRoot::below(dir, dir),
            journal: Journal::new(),
        };
        assert_eq!(first_process(true, &spec), FirstProcess::Function);
        assert_eq!(first_process(false, &spec), FirstProcess::Init);
        let hook = || Some("/hook".to_owned());
        let volume = Volume { path: "/etc/app".to_owned(), files: Vec::new() };
        let changes: [fn(&mut SandboxSpec); 2] =
            [|spec| spec.uses.snapshots = true, |spec| spec.uses.commands = true];
        let mut needy: Vec<SandboxSpec> = vec![spec.clone(); 5];
        changes.iter().zip(&mut needy).for_each(|(change, spec)| change(spec));
        needy[2].hooks.before_snapshot = hook();
        needy[3].hooks.after_restore = hook();
        needy[4].process.volumes.push(volume);
        for spec in needy {
            assert_eq!(first_process(true, &spec), FirstProcess::Init, "{spec:?}");
        }
    }
}
