"""The checksum of TFRecord files, which TensorBoard's event files are as well."""


def _crc32c_table() -> list[int]:
    """The remainder of each byte under the Castagnoli polynomial, bits reversed."""
    table = []
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return table


_CRC32C = _crc32c_table()


def masked_crc32c(data: bytes) -> bytes:
    """CRC-32C of the data, rotated and shifted by a constant, as TFRecord files hold it: 4 bytes, little-endian."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, 'little')
