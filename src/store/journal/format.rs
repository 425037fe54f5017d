//! The bytes of a segment: its header, its records, its name. Integers are big-endian. Format version 1.
//!
//! ```text
//! segment   header block, record, record, ..., zeros        each starts at a multiple of the block size
//!
//! header    0  magic "IRISJRNL"        24  cluster id u128     104  hash seed u64
//! (512 B)   8  format version u32      40  region length u8    112  first commit u64
//!           12 block size u32          41  region, 32 B        120  hash of the record before it u64
//!           16 checksum u64            80  store id u64        128  length of the file u64
//!                                      96  shard count u32     all else zero
//!
//! record    0  checksum u64            16  commit u64          32  payload
//!           8  payload length u32      24  hash of the         then zeros up to the block size
//!           12 tag u8, 3 zeros             record before it u64
//! ```
//!
//! The checksum of a header is xxh3-64 over its 512 bytes with the checksum as zero. The checksum of a record is
//! xxh3-64 over all that follows it, seeded with the identity and the first commit of the segment: neither bytes of
//! another journal nor a record that somebody put into a payload pass for a record here. It is also the record's hash
//! in the chain.

use super::{Identity, JournalError};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The format version that this code writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of a segment's header that are checked; the smallest block size.
pub const SEGMENT_HEADER: usize = 512;

/// Bytes before a record's payload.
pub const RECORD_HEADER: usize = 32;

/// Largest block size in bytes: beyond it a small commit costs more to write than to sync.
pub const MAX_BLOCK: u32 = 64 * 1024;

/// Longest name of a region in bytes.
pub const MAX_REGION: usize = 32;

const MAGIC: &[u8; 8] = b"IRISJRNL";
const SUFFIX: &str = ".seg";

/// What a segment's header says beside the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the first commit that the segment can hold.
    pub first_commit: u64,
    /// Hash of the record before that; 0 before the first.
    pub previous: u64,
    /// Length of the file in bytes.
    pub capacity: u64,
    /// Records start at multiples of this many bytes.
    pub block: u32,
}

impl SegmentHeader {
    /// The 512 bytes of the header.
    pub fn encode(&self, identity: &Identity) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        let region = identity.region.as_bytes();
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.block.to_be_bytes());
        bytes[24..40].copy_from_slice(&identity.cluster.to_be_bytes());
        bytes[40] = u8::try_from(region.len()).expect("Identity::check bounds the region");
        bytes[41..41 + region.len()].copy_from_slice(region);
        bytes[80..88].copy_from_slice(&identity.store.to_be_bytes());
        bytes[96..100].copy_from_slice(&identity.shards.to_be_bytes());
        bytes[104..112].copy_from_slice(&identity.seed.to_be_bytes());
        bytes[112..120].copy_from_slice(&self.first_commit.to_be_bytes());
        bytes[120..128].copy_from_slice(&self.previous.to_be_bytes());
        bytes[128..136].copy_from_slice(&self.capacity.to_be_bytes());
        let checksum = xxh3_64(&bytes);
        bytes[16..24].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads a header and compares the identity. `file` is for messages.
    pub fn decode(
        bytes: &[u8; SEGMENT_HEADER],
        file: &str,
        expected: &Identity,
    ) -> Result<Self, JournalError> {
        let (stored, header) = Self::decode_any(bytes, file)?;
        let differ = |field, stored: String, expected: String| {
            if stored == expected {
                return Ok(());
            }
            Err(JournalError::Identity {
                file: file.to_owned(),
                field,
                stored,
                expected,
            })
        };
        differ(
            "cluster id",
            format!("{:032x}", stored.cluster),
            format!("{:032x}", expected.cluster),
        )?;
        differ("region", stored.region, expected.region.clone())?;
        differ(
            "store id",
            format!("{:016x}", stored.store),
            format!("{:016x}", expected.store),
        )?;
        differ(
            "shard count",
            stored.shards.to_string(),
            expected.shards.to_string(),
        )?;
        differ(
            "hash seed",
            format!("{:016x}", stored.seed),
            format!("{:016x}", expected.seed),
        )?;
        Ok(header)
    }

    /// Reads a header of whatever identity.
    pub fn decode_any(bytes: &[u8; SEGMENT_HEADER], file: &str) -> Result<(Identity, Self), JournalError> {
        let damaged = |what: String| JournalError::Header {
            file: file.to_owned(),
            what,
        };
        if &bytes[0..8] != MAGIC {
            return Err(damaged(format!(
                "it begins with {:02x?} where {MAGIC:02x?} was expected",
                &bytes[0..8]
            )));
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(JournalError::Version {
                file: file.to_owned(),
                found: version,
            });
        }
        let mut unsigned = *bytes;
        unsigned[16..24].fill(0);
        let (stored, computed) = (u64_at(bytes, 16), xxh3_64(&unsigned));
        if stored != computed {
            return Err(damaged(format!(
                "its checksum is {stored:016x}, its bytes give {computed:016x}"
            )));
        }
        let region = usize::from(bytes[40]).min(MAX_REGION);
        let region = std::str::from_utf8(&bytes[41..41 + region])
            .map_err(|_| damaged("the region's name is not UTF-8".to_owned()))?;
        let identity = Identity {
            cluster: u128::from_be_bytes(array(bytes, 24)),
            region: region.to_owned(),
            store: u64_at(bytes, 80),
            shards: u32_at(bytes, 96),
            seed: u64_at(bytes, 104),
        };
        let header = Self {
            first_commit: u64_at(bytes, 112),
            previous: u64_at(bytes, 120),
            capacity: u64_at(bytes, 128),
            block: u32_at(bytes, 12),
        };
        if !is_block(header.block) {
            return Err(damaged(format!("{} is not a block size", header.block)));
        }
        Ok((identity, header))
    }
}

/// What precedes a record's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// The checksum, also the record's hash.
    pub checksum: u64,
    /// Length of the payload in bytes.
    pub length: u32,
    /// Meaning given by the caller.
    pub tag: u8,
    /// The commit's number.
    pub commit: u64,
    /// Hash of the record before.
    pub previous: u64,
}

impl RecordHeader {
    /// Reads the fields without judging them. `bytes` holds at least [`RECORD_HEADER`] bytes.
    pub fn parse(bytes: &[u8]) -> Self {
        Self {
            checksum: u64_at(bytes, 0),
            length: u32_at(bytes, 8),
            tag: bytes[12],
            commit: u64_at(bytes, 16),
            previous: u64_at(bytes, 24),
        }
    }
}

/// Fills the header at the front of `record` (header and payload, without padding) and returns its hash.
pub fn seal(record: &mut [u8], key: u64, tag: u8, commit: u64, previous: u64) -> u64 {
    let length = u32::try_from(record.len() - RECORD_HEADER).expect("MAX_RECORD fits in 32 bits");
    record[8..12].copy_from_slice(&length.to_be_bytes());
    record[12..16].copy_from_slice(&[tag, 0, 0, 0]);
    record[16..24].copy_from_slice(&commit.to_be_bytes());
    record[24..32].copy_from_slice(&previous.to_be_bytes());
    let checksum = xxh3_64_with_seed(&record[8..], key);
    record[0..8].copy_from_slice(&checksum.to_be_bytes());
    checksum
}

/// Whether the bytes of a record (header and payload, without padding) have the checksum that they carry.
pub fn is_sealed(record: &[u8], key: u64) -> bool {
    record.len() >= RECORD_HEADER && u64_at(record, 0) == xxh3_64_with_seed(&record[8..], key)
}

/// The seed for checksums of the records in one segment.
pub fn record_key(identity: &Identity, first_commit: u64) -> u64 {
    let mut bytes = [0; 32];
    bytes[0..16].copy_from_slice(&identity.cluster.to_be_bytes());
    bytes[16..24].copy_from_slice(&identity.store.to_be_bytes());
    bytes[24..32].copy_from_slice(&first_commit.to_be_bytes());
    xxh3_64(&bytes)
}

/// Bytes on disk of a record with a payload of `length`.
pub fn record_space(length: usize, block: u32) -> u64 {
    ((RECORD_HEADER + length) as u64).next_multiple_of(u64::from(block))
}

/// Whether `block` may be a block size: a power of two from [`SEGMENT_HEADER`] to [`MAX_BLOCK`].
pub fn is_block(block: u32) -> bool {
    block.is_power_of_two() && block as usize >= SEGMENT_HEADER && block <= MAX_BLOCK
}

/// The file name of the segment whose first commit is this: sorts as the numbers do.
pub fn segment_name(first_commit: u64) -> String {
    format!("{first_commit:020}{SUFFIX}")
}

/// The first commit in a segment's file name. `None` for a file that does not call itself a segment.
pub fn parse_segment_name(name: &str) -> Option<Result<u64, JournalError>> {
    let number = name.strip_suffix(SUFFIX)?;
    let wrong = || JournalError::Name {
        file: name.to_owned(),
    };
    let first = number.parse().map_err(|_| wrong());
    Some(first.and_then(|first| {
        if segment_name(first) == name {
            Ok(first)
        } else {
            Err(wrong())
        }
    }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a range of N bytes")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}
