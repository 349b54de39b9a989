//! Cuts a stream of bytes into lines of bounded length.

use crate::guest::MAX_LINE;

/// Collects bytes and gives whole lines; a line longer than [`MAX_LINE`] comes in pieces.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Adds bytes and passes every complete line, without its newline, to `line`.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            self.begun.extend_from_slice(text);
            while self.begun.len() > MAX_LINE {
                let rest = self.begun.split_off(cut(&self.begun));
                line(lossy(&std::mem::replace(&mut self.begun, rest)));
            }
            if whole {
                line(lossy(&std::mem::take(&mut self.begun)));
            }
        }
    }

    /// The last line, if the stream ended without a newline.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.begun);
        (!rest.is_empty()).then(|| lossy(&rest))
    }
}

/// Where to cut: at [`MAX_LINE`], or up to three bytes before it so as not to split a character.
fn cut(bytes: &[u8]) -> usize {
    let continues = |at: &usize| bytes.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    (MAX_LINE - 3..=MAX_LINE).rev().find(|at| !continues(at)).unwrap_or(MAX_LINE)
}

fn lossy(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |line| all.push(line));
        }
        all.extend(lines.finish());
        all
    }

    #[test]
    fn lines_are_put_together_from_chunks() {
        let lines = lines_of(&[b"one\ntw", b"o\r\n\nthr", b"ee", b"\nlast"]);
        assert_eq!(lines, ["one", "two", "", "three", "last"]);
        assert_eq!(lines_of(&[]), [""; 0]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let text = format!("x{}\n", "ü".repeat(MAX_LINE));
        let lines = lines_of(&[text.as_bytes()]);
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= MAX_LINE));
        assert_eq!(lines.concat(), text.trim_end());
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(lines_of(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]
        #[test]
        fn nothing_is_lost_and_nothing_too_long(text in "[a-z\n]{0,20000}", at: proptest::sample::Index) {
            let (a, b) = text.as_bytes().split_at(at.index(text.len() + 1));
            let lines = lines_of(&[a, b]);
            proptest::prop_assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
            proptest::prop_assert_eq!(lines.concat(), text.replace('\n', ""));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            let _ = lines_of(&[&bytes]);
        }
    }
}
