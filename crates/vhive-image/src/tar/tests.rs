use proptest::prelude::*;

use super::*;
use crate::tar_write;

fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let path = prop::collection::vec(1..=255_u8, 1..300).prop_map(|path| {
        path.into_iter().map(|byte| if byte == b'/' { b'x' } else { byte }).collect()
    });
    let data = prop::collection::vec(any::<u8>(), 0..2000);
    let time = (-4_000_000_000..90_000_000_000_i64, prop_oneof![Just(0), 0..1_000_000_000_u32]);
    let xattr = ("[a-z.]{1,20}", prop::collection::vec(any::<u8>(), 0..100))
        .prop_map(|(name, value)| Xattr { name: name.into_bytes(), value });
    (path, data, 0..=0o7777_u16, any::<(u32, u32)>(), time, prop::option::of(xattr)).prop_map(
        |(path, data, mode, (uid, gid), (mtime, mtime_nsec), xattr)| {
            let xattrs = xattr.into_iter().collect();
            let meta = Meta { mode, uid, gid, mtime, mtime_nsec, xattrs };
            let size = data.len() as u64;
            (Entry { path, kind: Kind::File, meta, size }, data)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..5)) {
        let mut stream = Vec::new();
        for (entry, data) in &entries {
            tar_write::append(&mut stream, entry, &mut data.as_slice()).expect("in memory");
        }
        tar_write::end(&mut stream).expect("in memory");
        let mut reader = Reader::new(stream.as_slice());
        for (entry, data) in &entries {
            let mut found = Vec::new();
            let next = reader.next().expect("sound");
            prop_assert_eq!(next.as_ref(), Some(entry));
            reader.data_reader().read_to_end(&mut found).expect("in memory");
            prop_assert_eq!(&found, data);
        }
        prop_assert_eq!(reader.next().expect("sound"), None);
    }

    #[test]
    fn damage_never_panics(
        entries in prop::collection::vec(entry(), 1..3),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = Vec::new();
        for (entry, data) in &entries {
            tar_write::append(&mut stream, entry, &mut data.as_slice()).expect("in memory");
        }
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
            // The checksum is made right again, so that the parser is reached.
            let block = at / BLOCK * BLOCK;
            stream[block + 148..block + 156].fill(b' ');
            let sum: u32 = stream[block..block + BLOCK].iter().map(|byte| u32::from(*byte)).sum();
            stream[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        stream.truncate(cut.index(stream.len() + 1));
        let mut reader = Reader::new(stream.as_slice());
        let mut count = 0;
        while let Ok(Some(_)) = reader.next() {
            count += 1;
            prop_assert!(count <= stream.len() / BLOCK);
        }
    }
}

#[test]
fn numbers_in_base_256_and_times_are_read() {
    let base256 = |tail: &[u8], first: u8| {
        let mut field = vec![first; 12 - tail.len()];
        field[0] = if first == 0 { 0x80 } else { 0xff };
        field.extend_from_slice(tail);
        signed_number(&field)
    };
    assert_eq!(base256(&[1, 0], 0), Some(256));
    assert_eq!(base256(&[0xfe], 0xff), Some(-2));
    assert_eq!(base256(&[0xff; 11], 0), None);
    assert_eq!(signed_number(b"0000017\0"), Some(15));
    assert_eq!(signed_number(b"   17 \0\0"), Some(15));
    assert_eq!(signed_number(b"8"), None);
    assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
    assert_eq!(pax_time(b"-1.25"), Some((-2, 750_000_000)));
    assert_eq!(pax_time(b"-3"), Some((-3, 0)));
    assert_eq!(pax_time(b"1.123456789999"), Some((1, 123_456_789)));
    for text in [b"".as_slice(), b".5", b"1.x", b"--1", b"1e3"] {
        assert_eq!(pax_time(text), None);
    }
}
