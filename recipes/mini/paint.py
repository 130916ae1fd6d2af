"""Draws the parts of a scene: backgrounds, cut-outs with light variation, shapes and printed words."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from .material import Material, Split
from .scene import SIDE
from .vocabulary import COLORS, Noun

_SMOOTH = 3
"""Shapes are drawn this many times larger and shrunk, for smooth edges."""


def background(material: Material, split: Split, random: np.random.Generator) -> Image.Image:
    """A 336 x 336 RGB background: a photograph's crop, a plain or graded colour, or a busy pattern."""
    draw = random.random()
    if draw < 0.55:
        picture = material.photograph(split, random)
        side = int(random.integers(SIDE * 2 // 3, min(picture.size) + 1))
        left = int(random.integers(picture.width - side + 1))
        top = int(random.integers(picture.height - side + 1))
        crop = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return crop.filter(ImageFilter.GaussianBlur(2)) if random.random() < 0.2 else crop
    if draw < 0.68:
        return Image.new("RGB", (SIDE, SIDE), _any_color(random))
    coarse = 2 if draw < 0.8 else int(random.integers(4, 60))
    noise = random.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
    smooth = Image.Resampling.BICUBIC if random.random() < 0.6 or coarse == 2 else Image.Resampling.NEAREST
    pattern = Image.fromarray(noise).resize((SIDE, SIDE), smooth)
    return Image.blend(pattern, Image.new("RGB", (SIDE, SIDE), _any_color(random)), float(random.uniform(0, 0.7)))


def noun(material: Material, noun: Noun, longest: int, split: Split, random: np.random.Generator) -> Image.Image:
    """An RGBA cut-out, mirrored half the time, slightly turned, stretched and re-lit, `longest` px long."""
    picture = material.cutout(noun, split, random)
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stretch = float(random.uniform(0.88, 1.14))
    scale = longest / max(picture.width * stretch, picture.height)
    size = (max(8, round(picture.width * stretch * scale)), max(8, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        picture = picture.rotate(float(random.uniform(-15, 15)), Image.Resampling.BILINEAR, expand=True)
    alpha = picture.getchannel("A")
    colors = picture.convert("RGB")
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        colors = enhancer(colors).enhance(float(random.uniform(0.82, 1.2)))
    colors.putalpha(alpha)
    return colors


def shape(name: str, color: str, longest: int, random: np.random.Generator) -> Image.Image:
    """An RGBA drawing of a shape in a colour with a little jitter, `longest` px on both sides."""
    side = longest * _SMOOTH
    jitter = random.integers(-18, 19, 3)
    fill = tuple(int(np.clip(value + offset, 0, 255)) for value, offset in zip(COLORS[color], jitter, strict=True))
    canvas = Image.new("RGBA", (side, side), (*fill, 0))
    draw = ImageDraw.Draw(canvas)
    if name == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=(*fill, 255))
    else:
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in _outline(name)], fill=(*fill, 255))
    small = canvas.resize((longest, longest), Image.Resampling.BOX)
    turn = 0.0 if name in {"circle", "square", "diamond", "cross"} else float(random.uniform(-12, 12))
    return small.rotate(turn, Image.Resampling.BICUBIC, expand=True)


def word(material: Material, text: str, height: int, random: np.random.Generator) -> Image.Image:
    """An RGBA label with the printed word: dark on light or light on dark."""
    font = material.font(height, random)
    left, top, right, bottom = font.getbbox(text)
    pad = max(4, height // 5)
    ink = random.integers(0, 90, 3)
    paper = random.integers(180, 256, 3)
    if random.random() < 0.4:
        ink, paper = paper, ink
    size = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    label = Image.new("RGBA", size, (*(int(v) for v in paper), 255))
    ImageDraw.Draw(label).text((pad - left, pad - top), text, font=font, fill=(*(int(v) for v in ink), 255))
    return label


def _any_color(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in random.integers(0, 256, 3))
    return red, green, blue


def _outline(name: str) -> list[tuple[float, float]]:
    if name == "square":
        return [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)]
    if name == "triangle":
        return [(0.5, 0.02), (1.0, 0.95), (0.0, 0.95)]
    if name == "diamond":
        return [(0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)]
    if name == "cross":
        a, b = 0.34, 0.66
        return [
            (a, 0),
            (b, 0),
            (b, a),
            (1, a),
            (1, b),
            (b, b),
            (b, 1),
            (a, 1),
            (a, b),
            (0, b),
            (0, a),
            (a, a),
        ]
    if name == "arrow":
        return [(0, 0.35), (0.55, 0.35), (0.55, 0.1), (1, 0.5), (0.55, 0.9), (0.55, 0.65), (0, 0.65)]
    if name == "star":
        turns = [(0.5 if k % 2 == 0 else 0.2, math.pi * k / 5) for k in range(10)]
        return [(0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle)) for radius, angle in turns]
    if name == "heart":
        steps = [2 * math.pi * k / 48 for k in range(48)]
        xs = [16 * math.sin(t) ** 3 for t in steps]
        ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in steps]
        return [((x + 16) / 32, (12 - y) / 29) for x, y in zip(xs, ys, strict=True)]
    raise ValueError(f"no outline for shape {name!r}")
