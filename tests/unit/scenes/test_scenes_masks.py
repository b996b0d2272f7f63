"""Masks of every kind of file, written by hand: all bits of an id are read, or the file is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bindkit.errors import BrokenSceneError
from bindkit.scenes.decoding import ids_of, numbered, read_channels

RNG = np.random.default_rng(4)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed_rows(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of samples [height, width, channel] of 1 to 16 bits, each row filled up to whole bytes."""
    rows = []
    for row in values.reshape(len(values), -1):
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(bytes(int(text[k : k + 8], 2) for k in range(0, len(text), 8)))
    return rows


def filtered(rows: list[bytes], step: int) -> bytes:
    """Rows under PNG's filters 0, 1 and 2 in turn."""
    before, stream = bytes(len(rows[0])) if rows else b"", b""
    for number, row in enumerate(rows):
        left = bytes(step) + row
        against = (bytes(len(row)), left, before)[number % 3]
        stream += bytes([number % 3]) + bytes((a - b) % 256 for a, b in zip(row, against, strict=False))
        before = row
    return stream


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values: np.ndarray, bits: int, colour_type: int, interlaced: bool = False) -> bytes:
    height, width, channels = values.shape
    step = max(1, bits * channels // 8)
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    pixels = b"".join(filtered(packed_rows(part, bits), step) for part in passes if part.size)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", bytes(RNG.permutation(768) % 256)[: 3 * 2 ** min(bits, 8)]) if colour_type == 3 else b""
    data = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray, bits: int, order: str = "<", photometric: int = 1, sample_format: int = 1, extra: int = -1
):
    """An uncompressed TIFF of one strip."""
    height, width, channels = values.shape
    if bits >= 16:
        pixels = values.astype(f"{order}{'ui'[sample_format == 2]}{bits // 8}" if sample_format < 3 else f"{order}f4")
        data = pixels.tobytes()
    else:
        data = b"".join(packed_rows(values, bits))
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        277: channels,
        278: height,
        339: sample_format,
    }
    if extra >= 0:
        tags[338] = extra
    n_tags = len(tags) + 2 + (photometric == 3)
    behind = 8 + 2 + 12 * n_tags + 4
    tail = b""
    entries = {279: (4, 1, struct.pack(order + "I", len(data)))}
    for tag, value in tags.items():
        if tag in (258, 339) and channels > 1:
            entries[tag] = (3, channels, struct.pack(order + "I", behind + len(tail)))
            tail += struct.pack(f"{order}{channels}H", *[value] * channels)
            if channels == 2:
                tail = tail[:-4]
                entries[tag] = (3, 2, struct.pack(order + "HH", value, value))
        else:
            entries[tag] = (3, 1, struct.pack(order + "HH", value, 0))
    if photometric == 3:
        entries[320] = (3, 3 * 2**bits, struct.pack(order + "I", behind + len(tail)))
        tail += struct.pack(f"{order}{3 * 2**bits}H", *(RNG.integers(0, 65536, 3 * 2**bits)))
    entries[273] = (4, 1, struct.pack(order + "I", behind + len(tail)))
    listed = b"".join(struct.pack(order + "HHI", tag, *entries[tag][:2]) + entries[tag][2] for tag in sorted(entries))
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return start + struct.pack(order + "H", len(entries)) + listed + bytes(4) + tail + data


def values_of(bits: int, channels: int = 1) -> np.ndarray:
    return RNG.integers(0, 2 ** min(bits, 31), (13, 11, channels))


def ids_in(content: bytes, tmp_path, rgb: bool = True) -> np.ndarray:
    path = tmp_path / "mask"
    path.write_bytes(content)
    return ids_of(read_channels(path, rgb=rgb).pixels)


GRAY_AND_PALETTE = [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour_type"), GRAY_AND_PALETTE)
def test_png_of_gray_and_palette_gives_the_numbers_written(tmp_path, bits: int, colour_type: int, interlaced: bool):
    values = values_of(bits)
    assert np.array_equal(ids_in(png(values, bits, colour_type, interlaced), tmp_path), values[..., 0])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_of_colours_gives_every_bit(tmp_path, bits: int, interlaced: bool):
    values = values_of(bits, 3)
    wanted = sum(values[..., k].astype(object) * 2 ** (bits * k) for k in range(3))
    assert np.array_equal(ids_in(png(values, bits, 2, interlaced), tmp_path), wanted)


def test_ids_601_to_604_in_colours_of_16_bits_are_four_objects(tmp_path):
    values = np.zeros((8, 8, 3), np.int64)
    values[..., :] = 601 + np.repeat(np.arange(4), 2)[None, :, None]
    ids = numbered(ids_in(png(values, 16, 2), tmp_path), tmp_path)
    assert ids.dtype == np.int32
    assert np.unique(ids).tolist() == [1, 2, 3, 4]  # above int32 as they stand, therefore numbered anew
    values[..., 1:] = 0
    assert np.unique(numbered(ids_in(png(values, 16, 2), tmp_path), tmp_path)).tolist() == [601, 602, 603, 604]


def test_ids_above_the_range_are_numbered_by_size_and_nothing_stays_nothing(tmp_path):
    ids = np.array([[0, 5, 2**40], [2**33, 5, 0]], dtype=np.int64)
    assert numbered(ids, tmp_path).tolist() == [[0, 1, 3], [2, 1, 0]]
    assert numbered(ids[:, :2] + 2**35, tmp_path).tolist() == [[1, 2], [3, 2]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "photometric"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 3), (2, 3), (4, 3), (8, 3)]
)
def test_tiff_of_gray_and_palette_gives_the_numbers_written(tmp_path, bits: int, photometric: int, order: str):
    values = values_of(bits)
    assert np.array_equal(ids_in(tiff(values, bits, order, photometric), tmp_path), values[..., 0])


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_32_bits_and_of_colours(tmp_path, order: str):
    values = values_of(31)
    assert np.array_equal(ids_in(tiff(values, 32, order, sample_format=2), tmp_path), values[..., 0])
    colours = values_of(8, 3)
    wanted = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    assert np.array_equal(ids_in(tiff(colours, 8, order, 2), tmp_path), wanted)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, bool])
def test_tiff_compressed_without_loss(tmp_path, compression: str, dtype):
    values = RNG.integers(0, 2**31, (13, 11)) % (2 if dtype is bool else 2 ** min(31, 8 * np.dtype(dtype).itemsize))
    stream = io.BytesIO()
    Image.fromarray(values.astype(dtype)).save(stream, "TIFF", compression=compression)
    assert np.array_equal(ids_in(stream.getvalue(), tmp_path), values)


REFUSED = {
    "gray with alpha": (png(values_of(8, 2), 8, 4), "mode LA"),
    "16-bit gray with alpha": (png(values_of(16, 2), 16, 4), "mode RGBA"),
    "colours with alpha": (png(values_of(8, 4), 8, 6), "mode RGBA"),
    "16-bit colours with alpha": (png(values_of(16, 4), 16, 6), "mode RGBA"),
    "white is zero": (tiff(values_of(8), 8, photometric=0), "photometric interpretation 0"),
    "1-bit white is zero": (tiff(values_of(1), 1, photometric=0), "photometric interpretation 0"),
    "real numbers": (tiff(values_of(8), 32, sample_format=3), "with a sign|mode F"),
    "8-bit with a sign": (tiff(values_of(8), 8, sample_format=2), "8-bit numbers with a sign"),
    "16-bit colours": (tiff(values_of(16, 3), 16, photometric=2), "16-bit colours"),
    "another channel": (tiff(values_of(8, 2), 8, extra=0), r"bits \(8, 8\)"),
    "a fourth channel": (tiff(values_of(8, 4), 8, photometric=2, extra=0), r"bits \(8, 8, 8, 8\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_no_certain_ids_are_refused_by_name(tmp_path, case: str):
    content, reason = REFUSED[case]
    with pytest.raises(BrokenSceneError, match=reason) as caught:
        ids_in(content, tmp_path)
    assert str(tmp_path / "mask") in str(caught.value)
    assert "expected 8- or 16-bit gray or palette" in str(caught.value)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_formats_that_may_change_ids_are_refused_by_name(tmp_path, kind: str, options: dict):
    stream = io.BytesIO()
    Image.fromarray(values_of(8)[..., 0].astype(np.uint8)).save(stream, kind, **options)
    with pytest.raises(BrokenSceneError, match=f"saved as {kind}, which may change ids; expected"):
        ids_in(stream.getvalue(), tmp_path)


def test_a_tiff_compressed_as_jpeg_is_refused_by_name(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(values_of(8)[..., 0].astype(np.uint8)).save(stream, "TIFF", compression="jpeg")
    with pytest.raises(BrokenSceneError, match="compressed by jpeg, which may change ids"):
        ids_in(stream.getvalue(), tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_gives_the_numbers_written(tmp_path, mode: str):
    values = values_of(1 if mode == "1" else 8, 3 if mode == "RGB" else 1).squeeze()
    image = Image.fromarray(values.astype(bool if mode == "1" else np.uint8))
    if mode == "P":
        image.putpalette(list(RNG.permutation(768) % 256))
    stream = io.BytesIO()
    image.save(stream, "BMP")
    weights = [1, 256, 65536]
    assert np.array_equal(ids_in(stream.getvalue(), tmp_path), values @ weights if mode == "RGB" else values)


def bmp(bits: int, n_colours: int, pixels: bytes, os2: bool = False) -> bytes:
    """8 x 8 pixels, and a palette that goes evenly from black on by one, or for two colours to white."""
    ramp = [0, 255] if n_colours == 2 else range(n_colours)
    palette = b"".join(bytes([k, k, k, 0][: 3 if os2 else 4]) for k in ramp)
    if os2:
        header = struct.pack("<IHHHH", 12, 8, 8, 1, bits)
    else:
        header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, 0, len(pixels), 1, 1, n_colours, n_colours)
    offset = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + header + palette + pixels


@pytest.mark.parametrize(
    ("content", "bits"),
    [(bmp(4, 16, bytes(range(4)) * 8), 4), (bmp(4, 16, bytes(range(4)) * 8, os2=True), 4), (bmp(8, 2, bytes(64)), 8)],
    ids=["4 bits", "4 bits of OS/2", "two colours in 8 bits"],
)
def test_a_bmp_that_pillow_reads_with_other_bits_is_refused(tmp_path, content: bytes, bits: int):
    with pytest.raises(BrokenSceneError, match=f"BMP file of {bits} bits"):
        ids_in(content, tmp_path)


def test_a_bmp_of_os2_is_read(tmp_path):
    content = bmp(8, 256, bytes(range(64)), os2=True)
    assert ids_in(content, tmp_path).tolist() == np.arange(64).reshape(8, 8)[::-1].tolist()


def test_files_of_several_pictures_are_refused_by_name(tmp_path):
    frames = [Image.fromarray(values_of(8)[..., 0].astype(np.uint8)) for _ in range(2)]
    for kind in ("TIFF", "PNG"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(BrokenSceneError, match="holds 2 pictures"):
            ids_in(stream.getvalue(), tmp_path)
