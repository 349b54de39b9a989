//! `image.toml`: what an image is built from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::reference::{ParseReferenceError, Reference};

/// Name of the file in the recipe's directory.
pub(crate) const FILE: &str = "image.toml";

/// Why a recipe is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is no recipe; the source names line and key.
    #[error("{path} is no recipe")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The name is no image reference.
    #[error(transparent)]
    Name(#[from] ParseReferenceError),
    /// It contradicts itself.
    #[error("{path}: layer {layer}: {why}")]
    Layer {
        /// The file.
        path: PathBuf,
        /// Which layer, counted from 1.
        layer: usize,
        /// What is wrong.
        why: &'static str,
    },
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeText {
    name: String,
    #[serde(default)]
    layer: Vec<LayerText>,
    #[serde(default)]
    config: ConfigText,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerText {
    debian: Option<Vec<String>>,
    pip: Option<Vec<String>>,
    to: Option<String>,
    #[serde(default)]
    run: Vec<Vec<String>>,
    #[serde(default)]
    inputs: Vec<String>,
    #[serde(default)]
    copy: Vec<Copy>,
}

/// One file or directory that is copied from the recipe's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Copy {
    /// Relative to the recipe's directory.
    pub(crate) from: String,
    /// Absolute in the image.
    pub(crate) to: String,
    /// Permission bits in octal; 0755 for executables and directories and 0644 for others if absent.
    pub(crate) mode: Option<String>,
}

/// The image's configuration, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigText {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    pub(crate) exposed_ports: Vec<u16>,
    pub(crate) stop_signal: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) dir: PathBuf,
    pub(crate) name: Reference,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) config: ConfigText,
}

/// What one layer is made of. Its serialised form enters the layer's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LayerSpec {
    /// Debian packages with what they depend on.
    Debian { packages: Vec<String> },
    /// Python packages, without what they depend on.
    Pip { requirements: Vec<String>, to: String },
    /// Files, perhaps made by commands first.
    Copy { run: Vec<Vec<String>>, inputs: Vec<String>, copy: Vec<Copy> },
}

impl Recipe {
    pub(crate) fn load(dir: &Path) -> Result<Self, RecipeError> {
        let path = dir.join(FILE);
        let text = fs::read_to_string(&path)
            .map_err(|source| RecipeError::Read { path: path.clone(), source })?;
        Self::parse(dir, &text)
    }

    fn parse(dir: &Path, text: &str) -> Result<Self, RecipeError> {
        let path = dir.join(FILE);
        let recipe: RecipeText = toml::from_str(text).map_err(|source| RecipeError::Syntax {
            path: path.clone(),
            source: Box::new(source),
        })?;
        let mut layers = Vec::new();
        for (at, layer) in recipe.layer.into_iter().enumerate() {
            let refuse = |why| RecipeError::Layer { path: path.clone(), layer: at + 1, why };
            layers.push(layer.check().map_err(refuse)?);
        }
        let name = recipe.name.parse()?;
        Ok(Self { dir: dir.to_owned(), name, layers, config: recipe.config })
    }
}

impl LayerText {
    fn check(self) -> Result<LayerSpec, &'static str> {
        let Self { debian, pip, to, run, inputs, copy } = self;
        let copies = !run.is_empty() || !inputs.is_empty() || !copy.is_empty();
        match (debian, pip, copies) {
            (Some(packages), None, false) => {
                if to.is_some() {
                    return Err("`to` belongs to `pip`");
                }
                let good = |name: &String| {
                    let chars = |byte: u8| {
                        byte.is_ascii_lowercase()
                            || byte.is_ascii_digit()
                            || b"+-.:".contains(&byte)
                    };
                    name.bytes().all(chars) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                };
                if packages.is_empty() || !packages.iter().all(good) {
                    return Err("`debian` must list package names");
                }
                Ok(LayerSpec::Debian { packages })
            }
            (None, Some(requirements), false) => {
                let pinned = |text: &String| {
                    text.split_once("==").is_some_and(|(name, version)| {
                        let good = |c: char| c.is_ascii_alphanumeric() || "._-[]+!".contains(c);
                        !name.is_empty()
                            && !version.is_empty()
                            && text.replace("==", "").chars().all(good)
                            && !name.starts_with('-')
                    })
                };
                if requirements.is_empty() || !requirements.iter().all(pinned) {
                    return Err("`pip` must list packages with versions, as in \"six==1.16.0\"");
                }
                let to = to.ok_or("`pip` needs `to`, the directory in the image")?;
                if !is_target(&to) {
                    return Err("`to` must be an absolute path in the image, without \"..\"");
                }
                Ok(LayerSpec::Pip { requirements, to })
            }
            (None, None, true) => {
                if to.is_some() {
                    return Err("`to` belongs to `pip`; a copy says `to` for each of its files");
                }
                if copy.is_empty() {
                    return Err("`run` without `copy` puts nothing into the image");
                }
                if run.iter().any(Vec::is_empty) {
                    return Err("`run` holds an empty command");
                }
                if !copy.iter().all(|copy| is_target(&copy.to)) {
                    return Err("`to` must be an absolute path in the image, without \"..\"");
                }
                if copy.iter().any(|copy| copy.from.is_empty() || copy.from.starts_with('/')) {
                    return Err("`from` must be relative to the recipe's directory");
                }
                if copy.iter().any(|copy| copy.mode().is_none()) {
                    return Err("`mode` must be octal, as in \"0755\"");
                }
                Ok(LayerSpec::Copy { run, inputs, copy })
            }
            _ => Err("a layer is one of `debian`, `pip`, or `copy` (with `run` and `inputs`)"),
        }
    }
}

impl Copy {
    /// The mode stated, if any; `None` outside if it is no octal number of at most four digits.
    #[expect(clippy::option_option, reason = "absent and malformed are two things")]
    pub(crate) fn mode(&self) -> Option<Option<u16>> {
        let Some(text) = &self.mode else { return Some(None) };
        let mode = u16::from_str_radix(text, 8).ok()?;
        (mode <= 0o7777 && text.len() <= 5).then_some(Some(mode))
    }
}

fn is_target(path: &str) -> bool {
    path.starts_with('/') && path.len() > 1 && path.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe, String> {
        Recipe::parse(Path::new("/r"), text).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        })
    }

    #[test]
    fn the_documented_recipe_parses() {
        let recipe = parse(include_str!("../../tests/data/image.toml")).unwrap();
        assert_eq!(recipe.name.to_string(), "dev.local/pyaes:latest");
        assert_eq!(recipe.layers.len(), 3);
        assert_eq!(recipe.config.exposed_ports, [8080]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("nam = \"x\"", "nam"),
            ("name = \"x\"\n[config]\nentrypiont = []", "entrypiont"),
            ("name = \"x\"\n[[layer]]\ndebain = []", "debain"),
            ("name = \"x\"\n[[layer]]\ndebian = []", "package names"),
            ("name = \"x\"\n[[layer]]\ndebian = [\"--hook=x\"]", "package names"),
            ("name = \"x\"\n[[layer]]\ndebian = [\"a\"]\npip = [\"b==1\"]", "one of"),
            ("name = \"x\"\n[[layer]]\npip = [\"b\"]\nto = \"/x\"", "versions"),
            ("name = \"x\"\n[[layer]]\npip = [\"--index-url==1\"]\nto = \"/x\"", "versions"),
            ("name = \"x\"\n[[layer]]\npip = [\"b==1\"]", "needs `to`"),
            ("name = \"x\"\n[[layer]]\npip = [\"b==1\"]\nto = \"/a/../b\"", "absolute"),
            ("name = \"x\"\n[[layer]]\nrun = [[\"true\"]]", "without `copy`"),
            ("name = \"x\"\n[[layer]]\ncopy = [{ from = \"/a\", to = \"/b\" }]", "relative"),
            ("name = \"x\"\n[[layer]]\ncopy = [{ from = \"a\", to = \"b\" }]", "absolute"),
            (
                "name = \"x\"\n[[layer]]\ncopy = [{ from = \"a\", to = \"/b\", mode = \"9\" }]",
                "octal",
            ),
            ("name = \"X Y\"", "no image reference"),
        ];
        for (text, part) in table {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
