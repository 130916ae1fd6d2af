"""Pictures of every depth and kind; what is no picture gets one clear line."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowcut.inputs.pictures import image_size, load_image

RAMP = np.linspace(0.0, 1.0, 24 * 30).reshape(24, 30)
"""Every grey of 8 bits, from black to white."""
EIGHT = np.round(255 * RAMP).astype(np.uint8)


def save(array: Any, path: Path, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def loaded(path: Path) -> Any:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("grey.png", (65535 * RAMP).astype(np.uint16), "0 to 65535"),
        ("grey.tif", (65535 * RAMP).astype(np.uint16), "0 to 65535"),
        ("twelve_bits.png", (700 + 4095 * RAMP).astype(np.uint16), "700 to 4795"),
        ("int.tif", (-1000 + 2000000 * RAMP).astype(np.int32), "-1000 to 1.999e+06"),
        ("share.tif", RAMP.astype(np.float32), "0 to 1"),
        ("part.tif", (0.25 + 0.5 * RAMP).astype(np.float32), "0.25 to 0.75"),
        ("vast.tif", ((RAMP - 0.5) * 6e38).astype(np.float32), "-3e+38 to 3e+38"),
    ],
)
def test_more_than_8_bits_are_brought_to_8_by_their_own_range_and_said_so(
    tmp_path: Path, name: str, array: Any, said: str
) -> None:
    path = save(array, tmp_path / name)
    with pytest.warns(UserWarning, match="own range") as caught:
        pixels = loaded(path)
    assert str(path) in str(caught[0].message) and said in str(caught[0].message)
    assert np.abs(pixels - EIGHT[..., None].astype(int)).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_unsigned_32_bits_do_not_wrap_around(tmp_path: Path) -> None:
    path = save((RAMP * 4e9).astype(np.uint32).view(np.int32), tmp_path / "unsigned.tif")
    signed = struct.pack("<HHIH", 339, 3, 1, 2)
    written = path.read_bytes()
    assert written.count(signed) == 1
    path.write_bytes(written.replace(signed, struct.pack("<HHIH", 339, 3, 1, 1)))
    with pytest.warns(UserWarning, match=r"0 to 4e\+09"):
        assert np.abs(loaded(path) - EIGHT[..., None].astype(int)).max() <= 1


def test_a_tiff_whose_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    path = save((65535 * (1 - RAMP)).astype(np.uint16), tmp_path / "white.tif", tiffinfo={262: 0})
    with pytest.warns(UserWarning, match="own range"):
        assert np.abs(loaded(path) - EIGHT[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.where(RAMP > 0.9, np.nan, RAMP), "NaN or infinite"),
        (np.where(RAMP > 0.9, np.inf, RAMP), "NaN or infinite"),
        (np.where(RAMP > 0.9, -np.inf, RAMP), "NaN or infinite"),
        (np.full_like(RAMP, 0.5), "the value 0.5 alone"),
    ],
)
def test_values_without_a_range_are_refused(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(save(array.astype(np.float32), tmp_path / "values.tif"))


def test_pictures_of_8_bits_stay_as_they_are_without_a_warning(tmp_path: Path) -> None:
    colours = np.stack([EIGHT, EIGHT[::-1], EIGHT[:, ::-1]], axis=-1)
    path = save(colours, tmp_path / "colours.png")
    flat = save(np.full((8, 8), 7, dtype=np.uint8), tmp_path / "flat.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(loaded(path), colours)
        assert np.array_equal(loaded(flat), np.full((8, 8, 3), 7))


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1] * 4)
    image.save(tmp_path / "palette.png")
    assert loaded(tmp_path / "palette.png")[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 51)])
    image.save(tmp_path / "rgba.png")
    expected = [[200, 0, 0], [255, 255, 255], [244, 204, 204]]
    assert loaded(tmp_path / "rgba.png")[0].tolist() == expected
    grey = Image.new("LA", (2, 1))
    grey.putdata([(50, 255), (50, 0)])
    grey.save(tmp_path / "la.png")
    assert loaded(tmp_path / "la.png")[0].tolist() == [[50] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert loaded(tmp_path / "palette.png")[0].tolist() == [[10, 20, 30], [255] * 3]
    key = Image.new("RGB", (2, 1), (9, 9, 9))
    key.putpixel((0, 0), (80, 70, 60))
    key.save(tmp_path / "key.png", transparency=(9, 9, 9))
    assert loaded(tmp_path / "key.png")[0].tolist() == [[80, 70, 60], [255] * 3]


def test_cmyk_is_no_negative(tmp_path: Path) -> None:
    for name, colour in (("red", (220, 30, 20)), ("white", (255, 255, 255)), ("black", (0, 0, 0))):
        path = tmp_path / f"{name}.jpg"
        Image.new("RGB", (16, 16), colour).convert("CMYK").save(path, quality=100)
        assert np.abs(loaded(path)[8, 8] - colour).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_any_way_gives_an_upright_picture(tmp_path: Path, orientation: int) -> None:
    """The picture has a red corner at the upper left once it is upright."""
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste((255, 0, 0), (0, 0, 8, 8))
    turn = Image.Transpose
    stored = {
        2: (turn.FLIP_LEFT_RIGHT,),
        3: (turn.ROTATE_180,),
        4: (turn.FLIP_TOP_BOTTOM,),
        5: (turn.TRANSPOSE,),
        6: (turn.ROTATE_90,),
        7: (turn.TRANSVERSE,),
        8: (turn.ROTATE_270,),
    }.get(orientation, ())
    image = upright
    for step in stored:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "camera.png", exif=exif)
    assert np.array_equal(loaded(tmp_path / "camera.png"), np.asarray(upright))


def white_png(path: Path, side: int) -> Path:
    """A white picture of one bit a pixel, written row by row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress((b"\0" + b"\xff" * ((side + 7) // 8)) * side)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_a_picture_that_is_too_large_says_so_and_what_the_limit_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_image(white_png(tmp_path / "huge.png", 14_000))
    for text in ("huge.png is too large", "196,000,000 pixels", "at most 178,956,970", "13,377 x 13,377"):
        assert text in str(caught.value)
    assert "broken" not in str(caught.value)


def test_a_large_picture_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    path = white_png(tmp_path / "large.png", 120)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).size == (120, 120)


def test_what_is_no_picture_says_what_it_is(tmp_path: Path) -> None:
    whole = save(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8), tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:9000])
    text = tmp_path / "text.png"
    text.write_text("a letter")
    empty = tmp_path / "empty.png"
    empty.touch()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    cases: list[tuple[str | Path, type[Exception], str]] = [
        (cut, ValueError, "is a broken image: "),
        (text, ValueError, "is not an image in a format that can be read"),
        (empty, ValueError, "is empty: a file of 0 bytes holds no image"),
        (pipe, ValueError, "is a pipe or a device. Save the image to a file first"),
        (tmp_path, FileNotFoundError, "it is a folder. Give the path of a file in it"),
        (tmp_path / "gone.png", FileNotFoundError, "No image found"),
        ("https://example.org/a.png", ValueError, "https://example.org/a.png is a web address. Download"),
        (Path("https://example.org/a.png"), ValueError, "is a web address"),
    ]
    for path, kind, message in cases:
        with pytest.raises(kind) as caught:
            load_image(path)
        assert message in str(caught.value) and str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_is_that_of_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 24)).save(tmp_path / "camera.jpg", exif=exif)
    assert image_size(tmp_path / "camera.jpg") == loaded(tmp_path / "camera.jpg").shape[:2]
    with pytest.raises(ValueError, match="too large"):
        image_size(white_png(tmp_path / "huge.png", 14_000))
