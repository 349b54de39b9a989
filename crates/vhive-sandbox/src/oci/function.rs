//! A function as a container's first process: what an init of ours would do for it inside, done by
//! the host before it starts, as a layer on top of its image and as words of `config.json`.
//!
//! ```text
//!   image: /etc/passwd, /etc/group ─► user, groups, HOME       ─► config.json
//!   names, working directory, usual directories                ─► layer on top of the image
//!   the program                                                ─► refused by name if it is not there
//! ```

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};

use vhive_api::guest::GuestNetwork;
use vhive_api::inside::{Account, USUAL_DIRECTORIES, environment, hosts, resolv_conf, stop_signal};

use super::root::{Owned, Root, There};
use crate::runtime::SandboxSpec;

/// What a runtime mounts over.
const MOUNT_POINTS: [(&str, u32); 3] = [("/proc", 0o755), ("/dev", 0o755), ("/sys", 0o755)];

/// The last signal that has a name of its own, SIGSYS.
const LAST_WITH_A_NAME: i32 = 31;

/// Whose a directory is that the image lacks.
const fn of_root(mode: u32) -> Owned {
    Owned { mode, uid: 0, gid: 0 }
}

/// A process that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) args: Vec<String>,
    /// `NAME=value`, in order.
    pub(super) env: Vec<String>,
    pub(super) cwd: String,
    pub(super) account: Account,
    /// Number of the signal that asks it to stop.
    pub(super) stop_signal: i32,
    /// Directories of the layer with their attributes; absolute. An outer one comes before those in
    /// it.
    directories: BTreeMap<PathBuf, Owned>,
    /// Files of the layer with their content; absolute.
    files: Vec<(PathBuf, String)>,
}

/// Why a process cannot be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    /// What could not be done, in init's words.
    pub(super) step: String,
    pub(super) reason: String,
}

/// Whether an image has anything there. Below a file it has not, and nothing can be made.
fn has(root: &Root, path: &Path) -> io::Result<bool> {
    match root.has(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        has => has,
    }
}

/// Prepares a specification's process. None if the image has links or files where the layer must have
/// directories, or wants to be stopped by a real-time signal: that is left to an init, which does it from
/// inside.
pub(super) fn prepare(
    root: &Root,
    spec: &SandboxSpec,
    network: &GuestNetwork,
) -> Result<Option<Function>, Unfit> {
    let process = &spec.process;
    let name = process.args.first().map_or("", String::as_str);
    let unfit = |step: &str, reason: String| Unfit { step: step.to_owned(), reason };
    let stop = stop_signal(&process.stop_signal).ok_or_else(|| {
        unfit("read the stop signal", format!("unknown signal {:?}", process.stop_signal))
    })?;
    let step = format!("start {name}");
    let text = |path: &str| root.text(Path::new(path), Account::MOST_BYTES);
    let account = Account::find(&process.user, &text("/etc/passwd"), &text("/etc/group"));
    let account = account.map_err(|reason| unfit(&step, reason))?;
    let env = environment(&process.env, &account.home);
    let cwd = Path::new("/").join(&process.cwd);
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path);
    find_program(root, name, path, &cwd).map_err(|reason| unfit(&step, reason))?;
    if process.args.iter().any(|arg| arg.contains('\0')) {
        return Err(unfit(&step, "an argument has a zero byte in it".to_owned()));
    }
    let mut layer = Layer { root, directories: BTreeMap::new() };
    let failed = |error: io::Error| unfit("look into the image", error.to_string());
    let mut plain = true;
    for (path, mode) in USUAL_DIRECTORIES {
        // Whatever the image has there is as its maker wants it.
        plain &= has(root, Path::new(path)).map_err(failed)?
            || layer.make(Path::new(path), of_root(mode)).map_err(failed)?;
    }
    for (path, mode) in MOUNT_POINTS {
        // A file there is hidden by init's layer.
        plain &= root.is_directory(Path::new(path)).unwrap_or(false)
            || layer.make(Path::new(path), of_root(mode)).map_err(failed)?;
    }
    let step = format!("make working directory {}", cwd.display());
    plain &= layer.has(&cwd, 0o755).map_err(|error| unfit(&step, error.to_string()))?;
    plain &= layer.replaces(Path::new("/etc")).map_err(failed)?;
    // gVisor's `kill` knows no real-time signals; an init does.
    plain &= stop <= LAST_WITH_A_NAME;
    if !plain {
        return Ok(None);
    }
    let hostname = spec.id.as_str();
    let files = [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts(hostname, Some(network), &process.gateway_names)),
        ("/etc/resolv.conf", resolv_conf(&network.dns)),
    ];
    Ok(Some(Function {
        args: process.args.clone(),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: cwd.to_string_lossy().into_owned(),
        account,
        stop_signal: stop,
        directories: layer.directories,
        files: files.map(|(path, text)| (PathBuf::from(path), text)).to_vec(),
    }))
}

impl Function {
    /// Writes its layer below a directory.
    pub(super) fn write_layer(&self, dir: &Path) -> io::Result<()> {
        let inside = |path: &Path| dir.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir(dir)?;
        // The layer's root becomes the container's.
        for (path, owned) in &self.directories {
            let path = inside(path);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            chown(&path, Some(owned.uid), Some(owned.gid))?;
            fs::set_permissions(&path, Permissions::from_mode(owned.mode))?;
        }
        for (path, text) in &self.files {
            let path = inside(path);
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

/// The directories of a layer that is being put together.
struct Layer<'a> {
    root: &'a Root,
    directories: BTreeMap<PathBuf, Owned>,
}

impl Layer<'_> {
    /// Sees to it that there is a directory; false if there are links in its way.
    fn has(&mut self, path: &Path, mode: u32) -> io::Result<bool> {
        match self.root.is_directory(path) {
            Ok(true) => return Ok(true),
            Ok(false) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.make(path, of_root(mode))
    }

    /// Sees to it that the layer has a directory, like the image's if that has one; false if there are
    /// links in its way.
    fn replaces(&mut self, path: &Path) -> io::Result<bool> {
        self.make(path, of_root(0o755))
    }

    fn make(&mut self, path: &Path, last: Owned) -> io::Result<bool> {
        // A directory of the layer hides the attributes of the image's, so it must have the same.
        let There::Directory(owned) = self.root.look(Path::new("/"))? else { return Ok(false) };
        let mut wanted = vec![(PathBuf::from("/"), owned)];
        // Step by step, each from where the last one has led: a path may have thousands.
        let mut inside = Some(self.root.enter(Path::new("/"))?);
        let mut parts = path.components().skip(1).peekable();
        let mut there = PathBuf::from("/");
        while let Some(part) = parts.next() {
            let Component::Normal(part) = part else { return Ok(false) };
            there.push(part);
            let found = match &inside {
                Some(dir) => dir.look(Path::new(part))?,
                None => There::Nothing,
            };
            let owned = match found {
                There::Directory(owned) => {
                    inside = inside.map(|dir| dir.enter(Path::new(part))).transpose()?;
                    owned
                }
                There::Nothing => {
                    inside = None;
                    if parts.peek().is_none() { last } else { of_root(0o755) }
                }
                There::Other => return Ok(false),
            };
            wanted.push((there.clone(), owned));
        }
        for (path, owned) in wanted {
            self.directories.entry(path).or_insert(owned);
        }
        Ok(true)
    }
}

/// Finds the program as init would: as given if its name has a slash (then below the working
/// directory unless absolute), else the first executable of that name in `PATH`.
fn find_program(root: &Root, name: &str, path: &str, cwd: &Path) -> Result<(), String> {
    if name.is_empty() {
        return Err("the image names no program (no entrypoint and no command)".to_owned());
    }
    let executable = |file: &Path| -> io::Result<bool> {
        let stat = root.stat(file)?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        Ok(is_file && stat.st_mode & 0o111 != 0)
    };
    if name.contains('/') {
        let file = cwd.join(name);
        return match executable(&file) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{} is no file that may be executed", file.display())),
            Err(error) => Err(format!("{} is not in the image ({error})", file.display())),
        };
    }
    let mut files = path.split(':').map(|dir| cwd.join(dir).join(name));
    if files.any(|file| executable(&file).unwrap_or(false)) {
        return Ok(());
    }
    Err(format!("{name} is in no directory of PATH ({path})"))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use vhive_api::guest::{Hooks, Process};
    use vhive_api::{Bytes, SandboxId};

    use super::*;
    use crate::journal::Journal;
    use crate::run_dir::RunRoot;
    use crate::runtime::{Guest, Uses};

    fn spec(process: Process) -> SandboxSpec {
        let dir = Path::new("/nowhere");
        SandboxSpec {
            guest: Guest::default(),
            id: SandboxId::random(),
            rootfs: dir.to_owned(),
            process,
            hooks: Hooks::default(),
            uses: Uses::default(),
            port: 1,
            cpu_millis: 1000,
            memory: Bytes::mib(64),
            network: None,
            run_root: RunRoot::below(dir, dir),
            journal: Journal::new(),
        }
    }

    fn try_prepare(image: &Path, process: Process) -> Result<Option<Function>, Unfit> {
        let [address, gateway] = [2, 1].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let network = GuestNetwork { address, prefix: 30, gateway, dns: vec![gateway] };
        prepare(&Root::open(image).expect("opened"), &spec(process), &network)
    }

    /// An image with a program and a user.
    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path();
        for path in ["bin", "etc", "tmp", "run", "var/tmp", "proc", "dev", "sys"] {
            fs::create_dir_all(image.join(path)).expect("made");
        }
        fs::write(image.join("etc/passwd"), "app:x:7:8::/home/app:\n").expect("written");
        fs::write(image.join("etc/group"), "more:x:9:app\n").expect("written");
        fs::write(image.join("bin/tool"), "").expect("written");
        let mode = Permissions::from_mode;
        fs::set_permissions(image.join("bin/tool"), mode(0o755)).expect("set");
        fs::set_permissions(image.join("etc"), mode(0o751)).expect("set");
        dir
    }

    fn process(args: &[&str]) -> Process {
        Process {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec!["PATH=/none:/bin".to_owned()],
            user: "app".to_owned(),
            ..Process::default()
        }
    }

    #[test]
    fn a_layer_has_what_the_image_lacks_with_the_images_attributes() {
        let image = image();
        fs::remove_dir(image.path().join("run")).expect("removed");
        let process = Process { cwd: "/made/deep".to_owned(), ..process(&["tool", "a"]) };
        let function = try_prepare(image.path(), process).expect("fit").expect("plain");
        let groups = vec![9];
        let home = "/home/app".to_owned();
        assert_eq!(function.account, Account { uid: 7, gid: 8, groups, home });
        assert_eq!(function.env, ["PATH=/none:/bin", "HOME=/home/app"]);
        assert_eq!((function.cwd.as_str(), function.stop_signal), ("/made/deep", 15));
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP a_layer_has_what_the_image_lacks_with_the_images_attributes: root");
            return;
        }
        let out = tempfile::tempdir().expect("a directory");
        let layer = out.path().join("layer");
        function.write_layer(&layer).expect("written");
        let attributes = |path: &str| {
            let there = fs::symlink_metadata(layer.join(path)).expect("there");
            (there.mode() & 0o7777, there.uid())
        };
        for (path, mode) in
            [("run", 0o755), ("made/deep", 0o755), ("etc", 0o751), ("etc/hosts", 0o644)]
        {
            assert_eq!(attributes(path), (mode, 0), "{path}");
        }
        let root = fs::metadata(image.path()).expect("there").mode() & 0o7777;
        assert_eq!(attributes("."), (root, 0));
        // What the image has is not in the way of itself.
        assert!(!layer.join("tmp").exists() && !layer.join("bin").exists());
    }

    #[test]
    fn links_in_the_way_are_left_to_init() {
        for (link, target, cwd) in [("etc", "elsewhere", ""), ("app", "/missing", "/app/data")] {
            let image = image();
            let path = image.path().join(link);
            if path.exists() {
                fs::rename(&path, image.path().join(target)).expect("moved");
            }
            symlink(target, &path).expect("linked");
            let process = Process { cwd: cwd.to_owned(), ..process(&["tool"]) };
            assert_eq!(try_prepare(image.path(), process), Ok(None), "{link}");
        }
        let image = image();
        let process = Process { cwd: "/none/../up".to_owned(), ..process(&["tool"]) };
        assert_eq!(try_prepare(image.path(), process), Ok(None));
    }

    #[test]
    fn a_file_where_a_directory_is_usual_stays_and_one_where_something_is_mounted_is_inits() {
        let paths = [("tmp", true), ("run", true), ("proc", false), ("dev", false), ("var", false)];
        for (path, plain) in paths {
            let image = image();
            fs::remove_dir_all(image.path().join(path)).expect("removed");
            fs::write(image.path().join(path), "a file").expect("written");
            let function = try_prepare(image.path(), process(&["tool"])).expect(path);
            assert_eq!(function.is_some(), plain, "{path}");
            if let Some(function) = function {
                assert!(!function.directories.contains_key(&Path::new("/").join(path)));
            }
        }
    }

    #[test]
    fn a_working_directory_of_thousands_of_parts_is_made_in_time() {
        let image = image();
        let cwd = "/a".repeat(2000);
        let begun = std::time::Instant::now();
        let process = Process { cwd: cwd.clone(), ..process(&["tool"]) };
        let function = try_prepare(image.path(), process).expect("fit").expect("plain");
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(function.directories.contains_key(Path::new(&cwd)));
    }

    #[test]
    fn what_is_unfit_is_named() {
        let image = image();
        let user = |user: &str| Process { user: user.to_owned(), ..process(&["tool"]) };
        let cwd = Process { cwd: "/bin/tool".to_owned(), ..process(&["tool"]) };
        let signal = Process { stop_signal: "SIGNONE".to_owned(), ..process(&["tool"]) };
        for (process, word) in [
            (process(&[]), "names no program"),
            (process(&["missing"]), "in no directory of PATH"),
            (process(&["/etc/passwd"]), "/etc/passwd"),
            (process(&["./bin/none"]), "/./bin/none is not in the image"),
            (process(&["tool", "a\0b"]), "zero byte"),
            (user("mallory"), "mallory"),
            (cwd, "/bin/tool"),
            (signal, "SIGNONE"),
        ] {
            let unfit = try_prepare(image.path(), process).expect_err(word);
            let text = format!("{}: {}", unfit.step, unfit.reason);
            assert!(text.contains(word), "{text}");
        }
    }
}
