//! The compressions that kernels and their modules come in, each bounded.

use std::io::{self, Read};

/// Most bytes that anything here may become.
pub(super) const MOST: usize = 512 << 20;

/// Uncompressed size of every block but the last of an LZ4 legacy frame.
const LZ4_BLOCK: usize = 8 << 20;

/// Why compressed data could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// Not one of the known ones.
    #[error("{0} compression is not supported; lz4, gzip, xz, zstd and none are")]
    Unsupported(&'static str),
    /// The data's beginning belongs to no compression.
    #[error("neither ELF nor a known compression (begins with {begin})")]
    Unknown {
        /// Its first bytes, hexadecimal.
        begin: String,
    },
    /// Damaged or cut data.
    #[error("{format} data is damaged")]
    Damaged {
        /// Name of the compression.
        format: &'static str,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// More than the limit comes out of it.
    #[error("{format} data unpacks to more than {limit} bytes")]
    TooLarge {
        /// Name of the compression.
        format: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// Unpacks data, telling its compression by its first bytes; an ELF file stays as it is.
pub(super) fn decompress(data: &[u8]) -> Result<Vec<u8>, DecompressError> {
    match data {
        [0x7f, b'E', b'L', b'F', ..] => Ok(data.to_vec()),
        [0x02, 0x21, 0x4c, 0x18, frame @ ..] => lz4_legacy(frame, MOST),
        [0x1f, 0x8b, ..] => drain("gzip", flate2::read::GzDecoder::new(data)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            drain("xz", lzma_rust2::XzReader::new(data, false))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let reader = zstd::stream::read::Decoder::new(data).map(|r| r.single_frame());
            drain(
                "zstd",
                reader.map_err(|source| DecompressError::Damaged { format: "zstd", source })?,
            )
        }
        [b'B', b'Z', b'h', ..] => Err(DecompressError::Unsupported("bzip2")),
        [0x5d, 0, 0, ..] => Err(DecompressError::Unsupported("lzma")),
        [0x89, b'L', b'Z', b'O', ..] => Err(DecompressError::Unsupported("lzo")),
        _ => {
            let begin = hex::encode(&data[..data.len().min(8)]);
            Err(DecompressError::Unknown { begin })
        }
    }
}

fn drain(format: &'static str, from: impl Read) -> Result<Vec<u8>, DecompressError> {
    let mut all = Vec::new();
    let read = from.take(MOST as u64 + 1).read_to_end(&mut all);
    read.map_err(|source| DecompressError::Damaged { format, source })?;
    if all.len() > MOST {
        return Err(DecompressError::TooLarge { format, limit: MOST });
    }
    Ok(all)
}

/// An LZ4 legacy frame without its magic number: blocks, each preceded by its compressed length.
///
/// # Source
/// LZ4 frame format, "Legacy frame"; Linux `lib/decompress_unlz4.c`.
fn lz4_legacy(mut frame: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
    const FORMAT: &str = "lz4";
    let damaged = |what: String| DecompressError::Damaged {
        format: FORMAT,
        source: io::Error::new(io::ErrorKind::InvalidData, what),
    };
    let mut all = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, rest)) = frame.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((packed, rest)) = rest.split_at_checked(length) else {
            return Err(damaged(format!("a block of {length} bytes in the last {}", rest.len())));
        };
        let got = lz4_flex::block::decompress_into(packed, &mut block);
        let got = got.map_err(|error| damaged(error.to_string()))?;
        all.extend_from_slice(&block[..got]);
        if all.len() > limit {
            return Err(DecompressError::TooLarge { format: FORMAT, limit });
        }
        frame = rest;
    }
    if frame.is_empty() { Ok(all) } else { Err(damaged("bytes after the last block".to_owned())) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Packs as the kernel's build does: `lz4 -l`.
    pub(crate) fn lz4_pack(data: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
        for block in data.chunks(LZ4_BLOCK) {
            let packed = lz4_flex::block::compress(block);
            frame.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            frame.extend(packed);
        }
        frame
    }

    /// So many bytes that compress, but not to nothing.
    fn sample(size: usize) -> Vec<u8> {
        (0..size).map(|n| u8::try_from(n / 97 % 251).unwrap()).collect()
    }

    #[test]
    fn every_supported_compression_is_undone() {
        let data = sample(LZ4_BLOCK + 100_000);
        let gzip = {
            use std::io::Write as _;
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(&data).unwrap();
            to.finish().unwrap()
        };
        let xz = {
            use std::io::Write as _;
            let options = lzma_rust2::XzOptions::with_preset(0);
            let mut to = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            to.write_all(&data).unwrap();
            to.finish().unwrap()
        };
        let zstd = zstd::encode_all(data.as_slice(), 1).unwrap();
        for (name, packed) in [("lz4", lz4_pack(&data)), ("gzip", gzip), ("xz", xz), ("zstd", zstd)]
        {
            assert!(decompress(&packed).unwrap() == data, "{name}");
            let cut = decompress(&packed[..packed.len() / 2]);
            assert!(matches!(cut, Err(DecompressError::Damaged { .. })), "{name}: {cut:?}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = decompress(b"BZh91AY").unwrap_err().to_string();
        assert!(error.contains("bzip2"), "{error}");
        let error = decompress(b"hello").unwrap_err().to_string();
        assert!(error.contains("68656c6c6f"), "{error}");
    }

    #[test]
    fn an_lz4_bomb_is_cut_off() {
        let packed = lz4_pack(&vec![0; 3 << 20]);
        let error = lz4_legacy(&packed[4..], 1 << 20);
        assert!(matches!(error, Err(DecompressError::TooLarge { .. })), "{error:?}");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn any_frame_is_survived(magic in 0..4_usize, bytes: Vec<u8>) {
            let magics: [&[u8]; 4] = [
                &[0x02, 0x21, 0x4c, 0x18],
                &[0x1f, 0x8b],
                &[0xfd, b'7', b'z', b'X', b'Z', 0],
                &[0x28, 0xb5, 0x2f, 0xfd],
            ];
            let _ = decompress(&[magics[magic], &bytes].concat());
        }

        #[test]
        fn a_changed_frame_is_survived(at: proptest::sample::Index, to: u8, size in 0..5000_usize) {
            let mut packed = lz4_pack(&sample(size));
            let at = at.index(packed.len());
            packed[at] = to;
            let _ = decompress(&packed);
        }
    }
}
