//! Cutting what QEMU and the guest send into lines and frames, in bounded memory.

use vhive_api::guest::{FrameError, FromGuest, MAX_FRAME, read_frame};

/// Longest line of the console or of QEMU's own messages, in bytes; longer ones are cut into
/// several.
const LONGEST_LINE: usize = 1 << 10;

/// Turns pieces of text into lines. Control characters are dropped, and bytes that are no UTF-8
/// are replaced, so that a hostile console cannot reprogram the terminal that shows it.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes a piece and hands each line that it completes to `each`.
    pub(crate) fn take(&mut self, piece: &[u8], mut each: impl FnMut(String)) {
        for byte in piece {
            if *byte != b'\n' {
                self.pending.push(*byte);
            }
            if *byte == b'\n' || self.pending.len() >= LONGEST_LINE {
                self.finish(&mut each);
            }
        }
    }

    /// Hands over what is left without a newline.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(String)) {
        if self.pending.is_empty() {
            return;
        }
        let line = String::from_utf8_lossy(&self.pending);
        let line: String = line.chars().filter(|c| *c == '\t' || !c.is_control()).collect();
        self.pending.clear();
        if !line.is_empty() {
            each(line);
        }
    }
}

/// Turns pieces of the guest channel into messages.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    /// Takes a piece.
    pub(crate) fn take(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// The next complete message; `None` until more has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<FromGuest>, FrameError> {
        let Some((head, _)) = self.pending.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head);
        let whole = 4 + length as usize;
        if length <= MAX_FRAME && self.pending.len() < whole {
            return Ok(None);
        }
        let message = read_frame(&mut self.pending.as_slice())?;
        self.pending.drain(..whole);
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use vhive_api::guest::{Stream, write_frame};

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        pieces.iter().for_each(|piece| lines.take(piece, |line| got.push(line)));
        lines.finish(|line| got.push(line));
        got
    }

    #[test]
    fn lines_are_joined_cut_and_cleaned() {
        assert_eq!(lines(&[b"a", b"b\r\n\r\nc\td"]), ["ab", "c\td"]);
        assert_eq!(lines(&[b"\x1b[31mred\x07\xff\n"]), ["[31mred\u{fffd}"]);
        let long = lines(&[&vec![b'x'; LONGEST_LINE + 1]]);
        assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, 1]);
    }

    #[test]
    fn a_hostile_length_is_refused_at_once() {
        let mut frames = Frames::default();
        frames.take(&u32::MAX.to_le_bytes());
        assert!(matches!(frames.next(), Err(FrameError::Length(_))));
    }

    proptest::proptest! {
        #[test]
        fn frames_survive_any_cutting(texts: Vec<String>, size in 1_usize..40) {
            let message = |line: &String| FromGuest::Output {
                at_ns: 1, stream: Stream::Stdout, line: line.clone(),
            };
            let mut wire = Vec::new();
            texts.iter().for_each(|text| write_frame(&mut wire, &message(text)).unwrap());
            let (mut frames, mut got) = (Frames::default(), Vec::new());
            for piece in wire.chunks(size) {
                frames.take(piece);
                while let Some(message) = frames.next().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, texts.iter().map(message).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let mut frames = Frames::default();
            frames.take(&bytes);
            while let Ok(Some(_)) = frames.next() {}
            lines(&[&bytes]);
        }
    }
}
