//! What has been found out about a host, kept in a file until what it depends on changes.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::HostLacks;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered<Q, A> {
    question: Q,
    answer: A,
}

/// How the names of all files with answers end.
const ENDING: &str = "json";

/// How long a refusal is kept in a file: a host that was too busy for a trial is not for ever.
const REFUSAL: Duration = Duration::from_secs(3600);

/// How long one is kept by a node that is asked again and again.
const PAUSE: Duration = Duration::from_secs(5);

/// The answer, if it was to this very question, and is a good one or not old.
pub(crate) fn recall<Q, A>(question: &Q, file: &Path, is_good: impl Fn(&A) -> bool) -> Option<A>
where
    Q: DeserializeOwned + PartialEq,
    A: DeserializeOwned,
{
    // Unreadable, or from another version: as good as never asked.
    let known: Remembered<Q, A> = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let age = || fs::metadata(file).ok()?.modified().ok()?.elapsed().ok();
    let holds = is_good(&known.answer) || age().is_some_and(|age| age < REFUSAL);
    (known.question == *question && holds).then_some(known.answer)
}

/// What follows a refusal that is kept in a file.
pub(crate) fn until(file: &Path) -> String {
    let minutes = REFUSAL.as_secs() / 60;
    format!(
        "`vhive doctor --again` tries it again now, the next node {minutes} minutes later or once {} is \
         removed",
        file.display()
    )
}

/// Forgets all that is kept of a host in `cache`, so that it is found out anew.
///
/// # Errors
/// Any I/O error but that there is nothing.
pub fn forget(cache: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(cache) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == ENDING) {
            match fs::remove_file(&file) {
                // Somebody else has forgotten it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// What a node has found out: for good once it has been found, for a moment if it was not there, so
/// that a crowd of requests does not look for it all at once.
#[derive(Debug)]
pub(crate) struct Kept<T>(Option<Result<Arc<T>, (HostLacks, Instant)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Kept<T> {
    /// What is known, or what comes of looking.
    ///
    /// # Errors
    /// What the host lacks.
    pub(crate) fn or_look(
        &mut self,
        look: impl FnOnce() -> Result<T, HostLacks>,
    ) -> Result<Arc<T>, HostLacks> {
        self.or_look_after(PAUSE, look)
    }

    fn or_look_after(
        &mut self,
        pause: Duration,
        look: impl FnOnce() -> Result<T, HostLacks>,
    ) -> Result<Arc<T>, HostLacks> {
        match &self.0 {
            Some(Ok(found)) => return Ok(Arc::clone(found)),
            Some(Err((lacks, at))) if at.elapsed() < pause => return Err(lacks.clone()),
            _ => {}
        }
        let found = look().map(Arc::new);
        self.0 = Some(found.clone().map_err(|lacks| (lacks, Instant::now())));
        found
    }

    /// What has been found.
    pub(crate) fn get(&self) -> Option<&Arc<T>> {
        self.0.as_ref()?.as_ref().ok()
    }

    /// Has it looked for again.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

/// What has been found out, and what it stands on.
pub(crate) type Known<K, T> = Option<(K, Kept<T>)>;

/// What is known of what is there now, or what comes of looking. It may take seconds, so not even what
/// came to nothing is looked for anew for each who asks.
///
/// # Errors
/// What the host lacks.
pub(crate) fn kept_on<K, T>(
    known: &mut Known<K, T>,
    now: K,
    same: impl FnOnce(&K, &K) -> bool,
    look: impl FnOnce() -> Result<T, HostLacks>,
) -> Result<Arc<T>, HostLacks> {
    match known {
        Some((then, kept)) if same(then, &now) => kept.or_look(look),
        _ => known.insert((now, Kept::default())).1.or_look(look),
    }
}

/// Keeps an answer. That it could not is told to the log only: it is found out anew then.
pub(crate) fn keep<Q: Serialize, A: Serialize>(question: &Q, answer: &A, file: &Path) {
    if let Err(error) = write(&Remembered { question, answer }, file) {
        tracing::warn!(path = %file.display(), %error, "what was found out about the host is not kept");
    }
}

fn write(known: &impl Serialize, file: &Path) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let draft = file.with_extension(format!("draft-{}", std::process::id()));
    fs::write(&draft, serde_json::to_vec_pretty(known)?)?;
    fs::rename(&draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recall_good<A: DeserializeOwned>(question: &(String, i32), file: &Path) -> Option<A> {
        recall(question, file, |_| true)
    }

    #[test]
    fn an_answer_is_kept_until_the_question_changes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("host/answer.json");
        let question = ("6.1".to_owned(), 7);
        assert_eq!(recall_good::<String>(&question, &file), None);
        keep(&question, &"it hung", &file);
        assert_eq!(recall_good(&question, &file), Some("it hung".to_owned()));
        assert_eq!(recall_good::<String>(&("6.2".to_owned(), 7), &file), None);
        fs::write(&file, "{").expect("written");
        assert_eq!(recall_good::<String>(&question, &file), None);
    }

    #[test]
    fn what_is_to_be_looked_at_again_is_forgotten_and_nothing_else() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let cache = base.path().join("host");
        forget(&cache).expect("nothing to forget");
        let files = ["accelerator.json", "criu.json", "firecracker.json"].map(|f| cache.join(f));
        for file in &files {
            keep(&7, &"it hung", file);
        }
        fs::create_dir(cache.join("init-1")).expect("made");
        forget(&cache).expect("forgotten");
        for file in &files {
            assert_eq!(recall(&7, file, |_: &String| true), None, "{}", file.display());
        }
        assert!(cache.join("init-1").exists());
    }

    #[test]
    fn a_refusal_is_kept_for_a_while_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("answer.json");
        keep(&7, &"it hung".to_owned(), &file);
        let told = |good| recall(&7, &file, |_: &String| good);
        assert!(told(false).is_some() && told(true).is_some());
        let then = std::time::SystemTime::now() - REFUSAL;
        let opened = fs::File::options().write(true).open(&file).expect("opened");
        opened.set_modified(then).expect("set");
        assert!(told(false).is_none() && told(true).is_some());
        // A clock that has been set back tells nothing of its age.
        opened.set_modified(then + 2 * REFUSAL).expect("set");
        assert!(told(false).is_none() && told(true).is_some());
    }

    #[test]
    fn what_was_not_there_is_looked_for_again() {
        let lacks = || HostLacks { what: "no runc".to_owned(), fix: "install it".to_owned() };
        let mut found = Kept::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(found.or_look_after(hour, || Err(lacks())), Err(lacks()));
        assert_eq!(found.or_look_after(hour, || Ok(1)), Err(lacks()), "too soon");
        assert_eq!(found.or_look_after(Duration::ZERO, || Ok(1)), Ok(Arc::new(1)));
        assert_eq!(found.or_look_after(Duration::ZERO, || Ok(2)), Ok(Arc::new(1)), "it is known");
        found.forget();
        assert_eq!(found.or_look(|| Ok(2)), Ok(Arc::new(2)));
    }
}
