//! Builds an image from a recipe, without a container engine.
//!
//! Each layer has a key: the digest of everything that decides its content. A layer whose key is
//! known is not made again, so recipes that begin alike share what they begin with.

mod debian;
mod files;
mod pip;
mod recipe;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vhive_api::Digest;

pub use self::recipe::RecipeError;
use self::recipe::{ConfigText, LayerSpec, Recipe};
use crate::draft::{Draft, Lock, Sync};
use crate::oci::{
    CONFIG, ConfigDocument, Descriptor, Document, LAYER, MANIFEST, RootFsList, RunConfig,
};
use crate::progress::{Progress, StepState};
use crate::reference::ParseReferenceError;
use crate::store::{Image, ImageStore, Inner, StoreError};
use crate::tar::{Entry, TarError};
use crate::tar_write;

/// Enters every key: changes whenever the same inputs would give another layer.
const FORMAT: u32 = 2;
/// Lines of a failed command's output that its error shows.
const TAIL: usize = 20;

/// Why an image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe is not accepted.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The name asked for is no image reference.
    #[error(transparent)]
    Name(#[from] ParseReferenceError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A program cannot be started.
    #[error("cannot run {program}; {hint}")]
    Missing {
        /// Which.
        program: String,
        /// What to do about it.
        hint: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed ({status}); it said last:\n{tail}")]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        tail: String,
    },
    /// A file of the recipe cannot be read.
    #[error("cannot read {path}, which the recipe names")]
    Input {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file of the recipe is a socket or a device.
    #[error("{path} is no file, directory or symbolic link")]
    FileType {
        /// Which.
        path: PathBuf,
    },
    /// apt has no lists of this machine's distribution.
    #[error(
        "apt knows no packages for {suite}; run `apt-get update` and see /etc/apt/sources.list.d"
    )]
    NoPackageLists {
        /// The distribution's code name.
        suite: String,
    },
    /// The distribution is none that we can take packages from.
    #[error(
        "this host's distribution cannot be told from /etc/os-release, so there are no Debian packages to take"
    )]
    Distribution,
    /// A Python package with compiled code.
    #[error(
        "{path} is compiled code, which may not fit the image's Python; take the package from Debian instead"
    )]
    Compiled {
        /// The file.
        path: PathBuf,
    },
    /// The archive that mmdebstrap wrote cannot be read.
    #[error("the packages' archive cannot be used")]
    Archive(#[from] TarError),
    /// The build ended without a result, e.g. because the program is shutting down.
    #[error("the build was abandoned; try again")]
    Abandoned,
}

/// A layer that was made before; stands in `builds/` under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Built {
    digest: Digest,
    bytes: u64,
}

impl ImageStore {
    /// Builds the image of the recipe `image.toml` in `recipe_dir` under its own name, or under
    /// `name`. Layers whose inputs have not changed are taken from the store.
    ///
    /// The recipe is trusted: its commands run on this host, in its directory.
    ///
    /// # Errors
    /// [`BuildError`]; layers finished before are kept for the next try, nothing half-made is.
    pub async fn build(
        &self,
        recipe_dir: impl AsRef<Path>,
        name: Option<&str>,
        progress: Progress,
    ) -> Result<Image, BuildError> {
        let store = Arc::clone(&self.inner);
        let dir = recipe_dir.as_ref().to_owned();
        let name = name.map(str::to_owned);
        let work = move || store.build_image(&dir, name.as_deref(), &progress);
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(BuildError::Abandoned))
    }
}

impl Inner {
    fn build_image(
        &self,
        dir: &Path,
        name: Option<&str>,
        progress: &Progress,
    ) -> Result<Image, BuildError> {
        let recipe = Recipe::load(dir)?;
        let name = name.map_or(Ok(recipe.name.clone()), str::parse)?.to_string();
        let _adding = self.adding()?;
        let mut layers = Vec::new();
        for (at, spec) in recipe.layers.iter().enumerate() {
            let what = format!("{name}: layer {} ({})", at + 1, spec.summary());
            layers.push(self.layer(&recipe, spec, &what, progress)?);
        }
        let digest = self.write_documents(&recipe.config, &layers)?;
        Ok(self.name(&name, digest)?)
    }

    /// A layer from the store, made first if its key is new.
    fn layer(
        &self,
        recipe: &Recipe,
        spec: &LayerSpec,
        what: &str,
        progress: &Progress,
    ) -> Result<Built, BuildError> {
        let key = match spec {
            LayerSpec::Debian { .. } => debian::key(spec)?,
            LayerSpec::Pip { .. } => key_of(spec, &[]),
            LayerSpec::Copy { run, inputs, copy } => {
                key_of(spec, &files::fingerprint(&recipe.dir, !run.is_empty(), inputs, copy)?)
            }
        };
        if let Some(built) = self.built(key) {
            progress.tell(what, StepState::Cached);
            return Ok(built);
        }
        let lock = self.builds().join(format!("{}.lock", key.hex()));
        let _lock = Lock::exclusive(&lock).map_err(StoreError::io(&lock))?;
        if let Some(built) = self.built(key) {
            progress.tell(what, StepState::Cached);
            return Ok(built);
        }
        let built = progress.step(what, || {
            let mut writer = LayerWriter::new(self.draft()?)?;
            match spec {
                LayerSpec::Debian { packages } => debian::fill(self, packages, &mut writer)?,
                LayerSpec::Pip { requirements, to } => {
                    pip::fill(self, requirements, to, &mut writer)?;
                }
                LayerSpec::Copy { run, copy, .. } => {
                    for command in run {
                        let (program, args) = command.split_first().expect("checked when parsed");
                        let mut command = Command::new(program);
                        command.args(args).current_dir(&recipe.dir);
                        run_command(&mut command, "see `run` in the recipe")?;
                    }
                    files::fill(&recipe.dir, copy, &mut writer)?;
                }
            }
            writer.finish(self)
        })?;
        self.remember(key, built)?;
        Ok(built)
    }

    fn built(&self, key: Digest) -> Option<Built> {
        let text = fs::read(self.builds().join(format!("{}.json", key.hex()))).ok()?;
        let built: Built = serde_json::from_slice(&text).ok()?;
        self.has_blob(built.digest, built.bytes).then_some(built)
    }

    fn remember(&self, key: Digest, built: Built) -> Result<(), StoreError> {
        let path = self.builds().join(format!("{}.json", key.hex()));
        let text = serde_json::to_vec(&built).expect("digests and numbers serialise");
        let draft = self.draft()?;
        draft.file().write_all(&text).map_err(StoreError::io(draft.path()))?;
        draft.publish(&path, Sync::No).map_err(StoreError::io(&path))
    }

    fn write_documents(&self, text: &ConfigText, layers: &[Built]) -> Result<Digest, StoreError> {
        let diff_ids = layers.iter().map(|layer| layer.digest).collect();
        let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        let word = |word: &String| (!word.is_empty()).then(|| word.clone());
        let ports: BTreeMap<String, serde_json::Value> = text
            .exposed_ports
            .iter()
            .map(|port| (format!("{port}/tcp"), serde_json::json!({})))
            .collect();
        let config = ConfigDocument {
            created: Some("1970-01-01T00:00:00Z".to_owned()),
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            config: Some(RunConfig {
                user: word(&text.user),
                exposed_ports: (!ports.is_empty()).then_some(ports),
                env: some(&text.env),
                entrypoint: some(&text.entrypoint),
                cmd: some(&text.cmd),
                working_dir: word(&text.working_dir),
                stop_signal: word(&text.stop_signal),
            }),
            rootfs: RootFsList { kind: "layers".to_owned(), diff_ids },
        };
        let descriptors = layers.iter().map(|layer| (LAYER, layer.digest, layer.bytes)).collect();
        self.put_image(&config, descriptors)
    }

    /// Writes configuration and manifest of an image whose layers are in the store.
    pub(crate) fn put_image(
        &self,
        config: &ConfigDocument,
        layers: Vec<(&str, Digest, u64)>,
    ) -> Result<Digest, StoreError> {
        let config = serde_json::to_vec(config).expect("strings and digests serialise");
        let config_digest = self.put_document(&config)?;
        self.put_manifest(Descriptor::new(CONFIG, config_digest, config.len() as u64), layers)
    }

    /// Writes the manifest of an image whose configuration and layers are in the store.
    pub(crate) fn put_manifest(
        &self,
        config: Descriptor,
        layers: Vec<(&str, Digest, u64)>,
    ) -> Result<Digest, StoreError> {
        let layer = |(media_type, digest, size)| Descriptor::new(media_type, digest, size);
        let manifest = Document {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            config: Some(config),
            layers: Some(layers.into_iter().map(layer).collect()),
            manifests: None,
        };
        self.put_document(&serde_json::to_vec(&manifest).expect("strings and digests serialise"))
    }
}

impl LayerSpec {
    fn summary(&self) -> String {
        match self {
            Self::Debian { packages } => format!("Debian {}", packages.join(" ")),
            Self::Pip { requirements, .. } => format!("Python {}", requirements.join(" ")),
            Self::Copy { run, copy, .. } => match run.first() {
                Some(command) => command.iter().take(3).cloned().collect::<Vec<_>>().join(" "),
                None => format!("{} files or directories", copy.len()),
            },
        }
    }
}

/// A layer's key: what the recipe says and what it found.
fn key_of(spec: &LayerSpec, found: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(FORMAT.to_le_bytes());
    hash.update(serde_json::to_vec(spec).expect("strings serialise"));
    hash.update(found);
    Digest::from_bytes(hash.finalize().into())
}

/// An uncompressed layer in the making; its digest is computed on the way.
#[derive(Debug)]
struct LayerWriter {
    out: BufWriter<Hashing>,
    path: PathBuf,
}

#[derive(Debug)]
struct Hashing {
    draft: Draft,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.draft.file().write(data)?;
        self.hash.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LayerWriter {
    fn new(draft: Draft) -> Result<Self, StoreError> {
        let path = draft.path().to_owned();
        let hashing = Hashing { draft, hash: Sha256::new(), bytes: 0 };
        Ok(Self { out: BufWriter::with_capacity(256 << 10, hashing), path })
    }

    fn append(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), StoreError> {
        tar_write::append(&mut self.out, entry, data).map_err(StoreError::io(&self.path))
    }

    fn finish(mut self, store: &Inner) -> Result<Built, BuildError> {
        let path = self.path;
        tar_write::end(&mut self.out).map_err(StoreError::io(&path))?;
        let inner = self.out.into_inner().map_err(io::IntoInnerError::into_error);
        let Hashing { draft, hash, bytes } = inner.map_err(StoreError::io(&path))?;
        let digest = Digest::from_bytes(hash.finalize().into());
        store.publish_blob(draft, digest)?;
        Ok(Built { digest, bytes })
    }
}

/// Runs a command to its end, without input; its output is shown only if it fails.
fn run_command(command: &mut Command, hint: &'static str) -> Result<Vec<u8>, BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.map_err(|source| BuildError::Missing { program: program.clone(), hint, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    let args = command.get_args().map(|arg| arg.to_string_lossy());
    let command = args.fold(program, |all, arg| all + " " + &arg);
    Err(BuildError::Command { command, status: output.status, tail })
}
