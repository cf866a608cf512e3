//! Refcounts of any width within a block (section "Host cluster management").

use byteorder::{BigEndian, ByteOrder};

use super::{EntryError, Geometry, HostOffset};

/// Bits 9 to 63 of a refcount table entry.
const TABLE_ENTRY_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// The place of the refcount block that a refcount table entry names; `None` where there is none.
///
/// # Errors
/// Reserved bits, or an offset that is not aligned.
pub fn decode_refcount_table_entry(raw: u64, geometry: &Geometry) -> Result<Option<HostOffset>, EntryError> {
    let offset = raw & TABLE_ENTRY_OFFSET;
    if raw != offset {
        return Err(EntryError::ReservedBits);
    }
    if !geometry.is_aligned(offset) {
        return Err(EntryError::Unaligned);
    }
    Ok((offset != 0).then_some(HostOffset::new(offset)))
}

/// The offset bits of a refcount table entry, whatever else is wrong with it: for the check of broken images.
#[must_use]
pub fn refcount_table_offset_bits(raw: u64) -> u64 {
    raw & TABLE_ENTRY_OFFSET
}

/// The bits of a refcount table entry.
#[must_use]
pub fn encode_refcount_table_entry(block: Option<HostOffset>) -> u64 {
    block.map_or(0, |offset| offset.get() & TABLE_ENTRY_OFFSET)
}

/// The largest refcount that `1 << order` bits hold. `order` is 0 to 6.
#[must_use]
pub fn max_refcount(order: u32) -> u64 {
    let bits = 1u32.checked_shl(order).unwrap_or(64);
    u64::MAX.checked_shr(64u32.saturating_sub(bits)).unwrap_or(u64::MAX)
}

/// The refcount at `index` in a block; `None` beyond its end. Widths below a byte count from the least significant bit.
#[must_use]
pub fn read_refcount(block: &[u8], index: u64, order: u32) -> Option<u64> {
    if order < 3 {
        let (byte, shift) = sub_byte_position(index, order)?;
        let value = block.get(byte)?.checked_shr(shift)?;
        return Some(u64::from(value) & max_refcount(order));
    }
    let (start, width) = byte_position(index, order)?;
    let bytes = block.get(start..start.checked_add(width)?)?;
    Some(match width {
        1 => u64::from(*bytes.first()?),
        2 => u64::from(BigEndian::read_u16(bytes)),
        4 => u64::from(BigEndian::read_u32(bytes)),
        _ => BigEndian::read_u64(bytes),
    })
}

/// Stores `value` at `index`; `None` (and nothing stored) beyond the block's end or when the value does not fit.
#[must_use]
pub fn write_refcount(block: &mut [u8], index: u64, order: u32, value: u64) -> Option<()> {
    if value > max_refcount(order) {
        return None;
    }
    if order < 3 {
        let (byte, shift) = sub_byte_position(index, order)?;
        let mask = u8::try_from(max_refcount(order)).ok()?.checked_shl(shift)?;
        let bits = u8::try_from(value).ok()?.checked_shl(shift)?;
        let slot = block.get_mut(byte)?;
        *slot = (*slot & !mask) | bits;
        return Some(());
    }
    let (start, width) = byte_position(index, order)?;
    let bytes = block.get_mut(start..start.checked_add(width)?)?;
    match width {
        1 => *bytes.first_mut()? = u8::try_from(value).ok()?,
        2 => BigEndian::write_u16(bytes, u16::try_from(value).ok()?),
        4 => BigEndian::write_u32(bytes, u32::try_from(value).ok()?),
        _ => BigEndian::write_u64(bytes, value),
    }
    Some(())
}

/// Byte and bit shift of a refcount narrower than a byte.
fn sub_byte_position(index: u64, order: u32) -> Option<(usize, u32)> {
    let bit = index.checked_shl(order)?;
    Some((usize::try_from(bit / 8).ok()?, u32::try_from(bit % 8).ok()?))
}

/// First byte and width in bytes of a refcount of a byte or more.
fn byte_position(index: u64, order: u32) -> Option<(usize, usize)> {
    let width = 1usize.checked_shl(order.checked_sub(3)?)?;
    Some((usize::try_from(index).ok()?.checked_mul(width)?, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn what_is_written_is_read_and_neighbours_keep_theirs() {
        for order in 0..=6 {
            let mut block = vec![0xa5u8; 64];
            let count = (64 * 8) >> order;
            let before: std::vec::Vec<_> = (0..count).map(|i| read_refcount(&block, i, order).unwrap()).collect();
            for index in 0..count {
                for value in [0, 1, max_refcount(order) / 2, max_refcount(order)] {
                    write_refcount(&mut block, index, order, value).unwrap();
                    assert_eq!(read_refcount(&block, index, order), Some(value));
                }
                write_refcount(&mut block, index, order, before[index as usize]).unwrap();
            }
            assert_eq!(block, vec![0xa5u8; 64]);
            assert_eq!(read_refcount(&block, count, order), None);
            assert_eq!(write_refcount(&mut block, count, order, 0), None);
            if order < 6 {
                assert_eq!(write_refcount(&mut block, 0, order, max_refcount(order) + 1), None);
            }
        }
    }

    #[test]
    fn table_entries() {
        let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).unwrap();
        let decode = |raw| decode_refcount_table_entry(raw, &geometry);
        assert_eq!(decode(0), Ok(None));
        let far = Some(HostOffset::new(0xff00_0000_0002_0000));
        assert_eq!(decode(0xff00_0000_0002_0000), Ok(far));
        assert_eq!(encode_refcount_table_entry(far), 0xff00_0000_0002_0000);
        assert_eq!(decode(0x20001), Err(EntryError::ReservedBits));
        assert_eq!(decode(0x20200), Err(EntryError::Unaligned));
    }

    #[test]
    fn widths_are_stored_as_the_specification_draws_them() {
        let mut block = vec![0u8; 8];
        write_refcount(&mut block, 1, 0, 1).unwrap();
        assert_eq!(block[0], 0b10);
        write_refcount(&mut block, 1, 2, 0xf).unwrap();
        assert_eq!(block[0], 0xf2);
        write_refcount(&mut block, 1, 4, 0x1234).unwrap();
        assert_eq!(&block[2..4], &[0x12, 0x34]);
    }
}
