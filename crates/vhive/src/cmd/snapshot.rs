//! `vhive snapshot`: lists, shows, makes, removes, exports, imports and collects snapshots.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;
use vhive_api::RuntimeName;
use vhive_node::{Collected, SnapshotInfo};

use super::Context;
use crate::cli::Format;
use crate::client::{FileBody, refused};
use crate::exit::Exit;
use crate::output;
use crate::stops::Stops;

/// Arguments of `vhive snapshot`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the snapshots of all namespaces.
    Ls,
    /// Shows one with everything that is known of it.
    Show(Which),
    /// Boots an instance, takes its snapshot when it is ready, and stops it again.
    Create {
        /// Name of a service, whose latest revision it is, or of a revision that requests can come to
        /// (`hello-00001`).
        name: String,
    },
    /// Removes one; instances that came from it go on.
    Rm(Which),
    /// Writes one as a tar archive.
    Export {
        #[command(flatten)]
        which: Which,
        /// Where to; `-` is standard output.
        file: PathBuf,
    },
    /// Takes in such an archive.
    Import {
        /// Where from; `-` is standard input.
        file: PathBuf,
    },
    /// Removes stale ones, orphans, and the least used ones beyond the configured size.
    Gc,
}

/// Names one snapshot.
#[derive(Debug, clap::Args)]
struct Which {
    /// Service, revision, or the first digits of the digest.
    name: String,
    /// Only of this runtime.
    #[arg(long)]
    runtime: Option<RuntimeName>,
}

/// Does it through the node.
///
/// # Errors
/// [`Exit::NotFound`], or the node's message.
pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Ls => list(context).await?,
        Verb::Show(which) => show(context, &find(context, &which).await?)?,
        Verb::Create { name } => {
            let namespace = context.global.namespace();
            let path = format!("/vhive/v1/namespaces/{namespace}/services/{name}/snapshot");
            let made: SnapshotInfo = context.client.json(Method::POST, &path, None).await?;
            show(context, &made)?;
        }
        Verb::Rm(which) => {
            let info = find(context, &which).await?;
            let _: Value = context.client.json(Method::DELETE, &path(&info), None).await?;
            output::line(format!("snapshot of {} removed", info.revision));
        }
        Verb::Export { which, file } => {
            export(context, &find(context, &which).await?, &file).await?;
        }
        Verb::Import { file } => import(context, &file).await?,
        Verb::Gc => {
            let path = "/vhive/v1/snapshots/gc";
            let done: Collected = context.client.json(Method::POST, path, None).await?;
            match context.global.output {
                Format::Json => output::json(&done)?,
                Format::Table => output::line(format!(
                    "{} removed, {} freed, {} left",
                    done.removed,
                    mib(done.freed.0),
                    mib(done.left.0)
                )),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(info: &SnapshotInfo) -> String {
    format!("/vhive/v1/snapshots/{}", info.id())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

async fn all(context: &Context) -> anyhow::Result<Vec<SnapshotInfo>> {
    context.client.get("/vhive/v1/snapshots").await
}

async fn find(context: &Context, which: &Which) -> anyhow::Result<SnapshotInfo> {
    let all = all(context).await?;
    let mut found = all.into_iter().filter(|info| which.means(info, context.global.namespace()));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Exit::NotFound(format!("no snapshot {:?}", which.name)).into()),
        (Some(one), Some(other)) => bail!(
            "{:?} means several snapshots, e.g. {} and {}; name one of them",
            which.name,
            one.id(),
            other.id()
        ),
    }
}

impl Which {
    fn means(&self, info: &SnapshotInfo, namespace: &str) -> bool {
        let name = &info.revision.name;
        let generation = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        let of_service = generation
            .is_some_and(|digits| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()));
        let named = info.revision.namespace == namespace && (*name == self.name || of_service);
        let by_digest = self.name.len() >= 6 && info.digest.hex().starts_with(&self.name);
        (named || by_digest) && self.runtime.is_none_or(|runtime| runtime == info.runtime)
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let all = all(context).await?;
    if context.global.output == Format::Json {
        return output::json(&all);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|info| {
            vec![
                info.revision.to_string(),
                info.digest.hex().chars().take(12).collect(),
                info.runtime.to_string(),
                mib(info.allocated.0),
                info.working_sets.len().to_string(),
                info.clones.to_string(),
                state(info),
                info.used.to_string(),
            ]
        })
        .collect();
    let headings =
        ["REVISION", "DIGEST", "RUNTIME", "SIZE", "WORKING SETS", "IN USE", "STATE", "LAST USED"];
    output::line(output::table(&headings, &rows));
    Ok(())
}

fn state(info: &SnapshotInfo) -> String {
    match &info.stale {
        Some(stale) => format!("stale ({})", stale.field),
        None if info.orphan && info.kept => "kept".to_owned(),
        None if info.orphan => "orphan".to_owned(),
        None if info.verified => "sound".to_owned(),
        None => "unread".to_owned(),
    }
}

fn show(context: &Context, info: &SnapshotInfo) -> anyhow::Result<()> {
    if context.global.output == Format::Json {
        return output::json(info);
    }
    let stale = info.stale.as_ref().map_or_else(
        || state(info),
        |stale| format!("stale: {} is {}, wanted {}", stale.field, stale.has, stale.wanted),
    );
    let sets: Vec<String> = info.working_sets.iter().map(ToString::to_string).collect();
    let again = if info.missed { " (will record again)" } else { "" };
    for (label, value) in [
        ("revision", info.revision.to_string()),
        ("digest", info.digest.hex()),
        ("runtime", format!("{} {}", info.runtime, info.version)),
        ("image", info.image.to_string()),
        ("state", stale),
        ("memory", info.memory.to_string()),
        ("length", mib(info.apparent.0)),
        ("on disk", mib(info.allocated.0)),
        (
            "working sets",
            format!("{}{again}", if sets.is_empty() { "none".to_owned() } else { sets.join(", ") }),
        ),
        ("in use", format!("{} instance(s)", info.clones)),
        ("taken", info.taken.clone()),
        ("last used", info.used.to_string()),
        ("path", info.path.display().to_string()),
    ] {
        output::line(format!("{label:14}{value}"));
    }
    Ok(())
}

async fn export(context: &Context, info: &SnapshotInfo, file: &Path) -> anyhow::Result<()> {
    let reply = context.client.send(Method::GET, &format!("{}/archive", path(info)), None).await?;
    if !reply.status().is_success() {
        return Err(refused(reply).await);
    }
    let mut body = reply.into_body();
    let there = || format!("cannot write {}", file.display());
    // Whoever is stopped leaves no half of an archive. Where none can be left, a signal does what it always does:
    // writing to a pipe may block, and would keep this program from hearing of it.
    let mut stops = if is_stream(file) { Stops::default() } else { Stops::unless_ignored()? };
    let mut out = Out::begin(file).with_context(there)?;
    let copied = async {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context("the archive broke off")?.into_data() {
                out.write_all(&data).with_context(there)?;
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        copied = copied => copied?,
        why = stops.came() => bail!("{why}"),
    }
    out.complete(file).with_context(there)
}

/// Whether an archive that goes there is written as it comes, instead of to a draft.
fn is_stream(to: &Path) -> bool {
    to == Path::new("-") || fs::metadata(to).is_ok_and(|there| !there.is_file())
}

/// Where an archive goes.
enum Out {
    /// Standard output, or what is there and is no file: it gets the bytes as they come.
    Stream(Box<dyn Write>),
    /// A file, which gets its name when it is whole.
    Draft(Draft),
}

/// A file that is being written beside its place. Dropping it removes it.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Out {
    fn begin(to: &Path) -> io::Result<Self> {
        if to == Path::new("-") {
            return Ok(Self::Stream(Box::new(io::stdout())));
        }
        if is_stream(to) {
            return Ok(Self::Stream(Box::new(File::create(to)?)));
        }
        let mut path = to.as_os_str().to_owned();
        path.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(path);
        // A guest's memory with whatever secrets are in it is for who has asked for it alone, as the node keeps it;
        // and nothing that somebody has put there is written through.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => io::Error::new(
                error.kind(),
                format!(
                    "{} is there, perhaps of an export that was killed; remove it",
                    path.display()
                ),
            ),
            _ => error,
        })?;
        Ok(Self::Draft(Draft { path, file }))
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(out) => out.write_all(data),
            Self::Draft(draft) => draft.file.write_all(data),
        }
    }

    /// All has been written.
    fn complete(self, to: &Path) -> io::Result<()> {
        match self {
            Self::Stream(mut out) => out.flush(),
            Self::Draft(draft) => {
                draft.file.sync_all()?;
                fs::rename(&draft.path, to)
            }
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more under this name if it is complete.
        let _ = fs::remove_file(&self.path);
    }
}

async fn import(context: &Context, file: &Path) -> anyhow::Result<()> {
    let read: Box<dyn Read + Send> = match file {
        _ if file == Path::new("-") => Box::new(io::stdin()),
        _ => Box::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?),
    };
    let body = FileBody::new(read).boxed_unsync();
    let path = "/vhive/v1/snapshots/import";
    let reply = context.client.send_body(Method::POST, path, "application/x-tar", body).await?;
    if !reply.status().is_success() {
        return Err(refused(reply).await);
    }
    let bytes: Bytes = crate::client::read_whole(reply.into_body()).await?;
    show(context, &serde_json::from_slice(&bytes).context("the node's reply is not understood")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_breaks_off_leaves_the_one_that_was_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let to = dir.path().join("hello.tar");
        fs::write(&to, "an earlier one").expect("written");
        let mut out = Out::begin(&to).expect("begun");
        out.write_all(b"half of").expect("written");
        drop(out);
        assert_eq!(fs::read_to_string(&to).expect("there"), "an earlier one");
        let mut out = Out::begin(&to).expect("begun");
        out.write_all(b"a new one").expect("written");
        out.complete(&to).expect("completed");
        assert_eq!(fs::read_to_string(&to).expect("there"), "a new one");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        // What is no file is written to as it is.
        let mut out = Out::begin(Path::new("/dev/null")).expect("begun");
        out.write_all(b"into nothing").expect("written");
        out.complete(Path::new("/dev/null")).expect("completed");
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
    }

    #[test]
    fn an_archive_is_for_who_has_asked_for_it_and_goes_through_no_link() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let dir = tempfile::tempdir().expect("a temporary directory");
        let to = dir.path().join("hello.tar");
        let mut out = Out::begin(&to).expect("begun");
        out.write_all(b"memory").expect("written");
        out.complete(&to).expect("completed");
        let mode = fs::metadata(&to).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        // Whoever knows the number of the process knows the name of the draft.
        let others = dir.path().join("others");
        fs::write(&others, "not ours").expect("written");
        let planted = dir.path().join(format!("hello.tar.{}.part", std::process::id()));
        symlink(&others, planted).expect("linked");
        let refused = Out::begin(&to).err().expect("refused");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert!(refused.to_string().contains(".part is there"), "{refused}");
        assert_eq!(fs::read_to_string(&others).expect("there"), "not ours");
    }
}
