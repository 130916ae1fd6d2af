"""Which file a question's picture is, and how it is opened."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import toy_questions
from PIL import Image

from flowcut.inputs.files import path_in
from flowcut.llava_files.pictures import squared, visual_of
from flowcut.llava_files.questions import Question


def asking(visual: str | None = None, encoded: str | None = None) -> Question:
    return Question(0, 0, "what?", visual, encoded, {"question_id": 5})


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x.png", "a/../../x.png", "..", ".", "", "//x", "a\0b", "C:/x.png", "..\\x.png", "\\x.png"],
)
def test_no_name_leads_out_of_the_images_folder(tmp_path: Path, name: str) -> None:
    toy_questions.save_pictures(tmp_path, ["x.png"])
    with pytest.raises(ValueError, match="leads out of the images folder"):
        path_in(tmp_path / "images", name)


def test_names_inside_the_folder_and_links_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert path_in(folder, "a/./b/../c.png") == folder / "a" / "c.png"
    assert path_in(folder, "..x/y..png") == folder / "..x" / "y..png"
    toy_questions.save_pictures(tmp_path / "elsewhere", ["x.png"])
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert isinstance(visual_of(asking("linked/x.png"), folder), Image.Image)


def test_a_picture_is_taken_as_it_is_stored(tmp_path: Path) -> None:
    turned = Image.new("RGB", (20, 10), "red").getexif()
    turned[274] = 6
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=turned)
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.save(tmp_path / "clear.png")
    seen = visual_of(asking("turned.jpg"), tmp_path)
    assert isinstance(seen, Image.Image) and seen.size == (20, 10)
    encoded = base64.b64encode((tmp_path / "clear.png").read_bytes()).decode()
    for question in (asking("clear.png"), asking(encoded=encoded)):
        seen = visual_of(question, tmp_path)
        assert isinstance(seen, Image.Image) and seen.mode == "RGB" and seen.getpixel((0, 0)) == (10, 20, 30)
    assert visual_of(asking(), None) is None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    toy_questions.save_pictures(tmp_path, ["whole.png"])
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for question, message in (
        (asking("half.png"), "half.png is a broken image"),
        (asking("text.png"), "text.png is not an image"),
        (asking("gone.png"), "No image found"),
        (asking(encoded="abc"), "the picture of question 5 is not base64"),
        (asking(encoded=base64.b64encode(b"text").decode()), "the picture of question 5 is not an image"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            visual_of(question, tmp_path)
    with pytest.raises(ValueError, match="--images"):
        visual_of(asking("whole.png"), None)


@pytest.mark.parametrize(("size", "box"), [((6, 3), (0, 1, 6, 4)), ((3, 6), (1, 0, 4, 6)), ((4, 4), (0, 0, 4, 4))])
def test_a_square_has_the_picture_in_its_middle(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = squared(Image.new("RGB", size, "white"), (0.5, 0.25, 0.999))
    pixels = np.asarray(image)
    assert image.size == (max(size), max(size))
    inside = np.zeros(pixels.shape[:2], bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert (pixels[inside] == 255).all() and (pixels[~inside] == (127, 63, 254)).all()
