//! Layers of Debian packages, taken from where this machine's apt takes them.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};
use vhive_api::Digest;

use super::recipe::LayerSpec;
use super::{BuildError, LayerWriter, key_of, run_command};
use crate::draft::Scratch;
use crate::store::{Inner, StoreError};
use crate::tar::Reader;

/// Where apt keeps its package lists.
const LISTS: &str = "/var/lib/apt/lists";
const ORIGINS: [&str; 2] = ["Debian", "Ubuntu"];
const HINT: &str = "install it with `apt-get install mmdebstrap`";
/// What a function has no use for, below these directories. Copyright files stay.
const EXCLUDED: [&[u8]; 10] = [
    b"./dev/",
    b"./etc/apt/",
    b"./proc/",
    b"./sys/",
    b"./usr/share/man/",
    b"./usr/share/info/",
    b"./usr/share/locale/",
    b"./var/cache/apt/",
    b"./var/lib/apt/",
    b"./var/log/",
];
/// What mmdebstrap copies from this host.
const HOST_FILES: [&[u8]; 2] = [b"./etc/hostname", b"./etc/resolv.conf"];
const DOC: &[u8] = b"./usr/share/doc/";
/// Does what the Python packages' own scripts would do, which do not run here. Files carry no
/// times, hence "unchecked". Packages may hold files that are no Python of this version; those stay as they are.
const COMPILE_PYTHON: &str = r#"if [ -x "$1/usr/bin/python3" ]; then
PYTHONHASHSEED=0 chroot "$1" /usr/bin/python3 -m compileall -qq --invalidation-mode unchecked-hash /usr/lib || :; fi"#;

/// The packages wanted, the distribution, and the state of apt's lists.
pub(super) fn key(spec: &LayerSpec) -> Result<Digest, BuildError> {
    let suite = suite()?;
    let mut releases = releases(&suite)?;
    if releases.is_empty() {
        run_command(Command::new("apt-get").arg("update"), "packages are taken from apt")?;
        releases = self::releases(&suite)?;
    }
    if releases.is_empty() {
        return Err(BuildError::NoPackageLists { suite });
    }
    Ok(key_of(spec, &[suite.into_bytes(), releases].concat()))
}

/// Digest of the signed release files of this distribution; empty if there are none.
fn releases(suite: &str) -> Result<Vec<u8>, BuildError> {
    let unreadable = |source| BuildError::Input { path: LISTS.into(), source };
    let mut texts = Vec::new();
    let entries = match fs::read_dir(LISTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with("_InRelease") || name.ends_with("_Release") {
            let text = fs::read(entry.path()).map_err(unreadable)?;
            if is_of(&text, suite) {
                texts.push((name, text));
            }
        }
    }
    texts.sort();
    let mut hash = Sha256::new();
    for (name, text) in &texts {
        hash.update(name.as_bytes());
        hash.update(text);
    }
    Ok(if texts.is_empty() { Vec::new() } else { hash.finalize().to_vec() })
}

fn is_of(release: &[u8], suite: &str) -> bool {
    let head = String::from_utf8_lossy(&release[..release.len().min(4096)]).into_owned();
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
    };
    field("Origin").is_some_and(|origin| ORIGINS.contains(&origin))
        && field("Codename").is_some_and(|name| belongs(name, suite))
}

/// `bookworm`, and also `bookworm-updates` and `bookworm-security`.
fn belongs(name: &str, suite: &str) -> bool {
    name == suite
        || ["-updates", "-security"].iter().any(|ext| name.strip_suffix(ext) == Some(suite))
}

fn suite() -> Result<String, BuildError> {
    let text = fs::read_to_string("/etc/os-release").map_err(|_| BuildError::Distribution)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = line.map(|line| line.trim_matches('"').to_owned());
    suite.filter(|suite| !suite.is_empty()).ok_or(BuildError::Distribution)
}

/// Puts the packages with what they depend on into the layer.
pub(super) fn fill(
    store: &Inner,
    packages: &[String],
    layer: &mut LayerWriter,
) -> Result<(), BuildError> {
    let drafts = store.drafts();
    let scratch = Scratch::new(&drafts).map_err(StoreError::io(&drafts))?;
    let archive = scratch.path().join("root.tar");
    let suite = suite()?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", "--format=tar"]);
    command.arg(format!("--include={}", packages.join(",")));
    command.arg(format!("--extract-hook={COMPILE_PYTHON}"));
    for option in proxy_options()? {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg(&suite).arg(&archive).args(sources(&suite)?);
    command.env("SOURCE_DATE_EPOCH", "0").env("TMPDIR", scratch.path());
    run_command(&mut command, HINT)?;
    copy_filtered(&archive, layer)
}

/// This machine's own sources of the distribution, in apt's one-line form.
fn sources(suite: &str) -> Result<Vec<String>, BuildError> {
    let mut targets = Command::new("apt-get");
    let format = "$(ORIGIN)|$(CODENAME)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)";
    targets.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let text = run_command(&mut targets, "packages are taken from apt")?;
    let text = String::from_utf8_lossy(&text);
    let mut sources: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, '|');
        let (Some(origin), Some(name), Some(source)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if ORIGINS.contains(&origin) && belongs(name, suite) && !sources.iter().any(|s| s == source)
        {
            sources.push(source.to_owned());
        }
    }
    if sources.is_empty() {
        return Err(BuildError::NoPackageLists { suite: suite.to_owned() });
    }
    Ok(sources)
}

/// The proxies that apt uses, for the apt that mmdebstrap runs.
fn proxy_options() -> Result<Vec<String>, BuildError> {
    let text = run_command(Command::new("apt-config").arg("dump"), "packages are taken from apt")?;
    let text = String::from_utf8_lossy(&text);
    let proxy = |line: &&str| {
        let line = line.to_ascii_lowercase();
        line.starts_with("acquire::http::proxy") || line.starts_with("acquire::https::proxy")
    };
    Ok(text.lines().filter(proxy).map(str::to_owned).collect())
}

fn copy_filtered(archive: &Path, layer: &mut LayerWriter) -> Result<(), BuildError> {
    let unreadable = |source| BuildError::Input { path: archive.to_owned(), source };
    let file = File::open(archive).map_err(unreadable)?;
    let mut from = Reader::new(BufReader::with_capacity(256 << 10, file));
    while let Some(mut entry) = from.next()? {
        if is_excluded(&entry.path) {
            continue;
        }
        (entry.meta.mtime, entry.meta.mtime_nsec) = (0, 0);
        layer.append(&entry, &mut from.data_reader())?;
    }
    Ok(())
}

/// Contents of excluded directories; the directories themselves stay.
fn is_excluded(path: &[u8]) -> bool {
    let below = |prefix: &&[u8]| path.strip_prefix(*prefix).is_some_and(|rest| !rest.is_empty());
    let is_dir = path.ends_with(b"/");
    let doc = path.starts_with(DOC) && !is_dir && !path.ends_with(b"/copyright");
    doc || EXCLUDED.iter().any(below) || HOST_FILES.contains(&path)
}
