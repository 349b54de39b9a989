//! What has been found out about a host, kept in a file until what it depends on changes.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered<Q, A> {
    question: Q,
    answer: A,
}

/// The answer, if it was to this very question.
pub(crate) fn recall<Q, A>(question: &Q, file: &Path) -> Option<A>
where
    Q: DeserializeOwned + PartialEq,
    A: DeserializeOwned,
{
    // Unreadable, or from another version: as good as never asked.
    let known: Remembered<Q, A> = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (known.question == *question).then_some(known.answer)
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

    #[test]
    fn an_answer_is_kept_until_the_question_changes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("host/answer.json");
        let question = ("6.1".to_owned(), 7);
        assert_eq!(recall::<_, String>(&question, &file), None);
        keep(&question, &"it hung", &file);
        assert_eq!(recall(&question, &file), Some("it hung".to_owned()));
        assert_eq!(recall::<_, String>(&("6.2".to_owned(), 7), &file), None);
        fs::write(&file, "{").expect("written");
        assert_eq!(recall::<_, String>(&question, &file), None);
    }
}
