"""Conversations as LLaVA's data files tell them, checked; what cannot be trained on is named with its reason."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pictures import FileStore, MediaStore, ShardStore

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MARKS = re.compile(r"\n?<(image|video)>\n?")
"""Where a picture or a video stands in a text; the line breaks beside it belong to the mark."""

TOY = Path(__file__).parent / "data" / "toy"
"""The folder of the set that ships with flowcut."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: ``user``, ``assistant`` or ``system``.
        content: texts, and ``{"type": "image"}`` or ``"video"`` between them, as chat templates take them.
    """

    role: str
    content: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """A conversation.

    Attributes:
        name: for messages.
        turns: at least a question and its answer.
        pictures, videos: names, in the order in which they are marked.
        store: where these names are looked up.
    """

    name: str
    turns: tuple[Turn, ...]
    pictures: tuple[str, ...]
    videos: tuple[str, ...]
    store: MediaStore


class BadSampleError(ValueError):
    """A sample that cannot be trained on; the message is the reason."""


@dataclass
class BadSamples:
    """The bad samples of a run, by reason.

    Attributes:
        stop: whether the first one ends the run.
        named: name and reason of each.
    """

    stop: bool
    named: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Count one.

        Raises:
            ValueError: the run shall stop.
        """
        if self.stop:
            raise ValueError(f"Sample {name}: {reason}. With `bad: skip` such samples are left out.")
        self.named[name] = reason

    def __len__(self) -> int:
        return len(self.named)

    def __str__(self) -> str:
        """How many there are of each kind, with the first one's name."""
        kinds = Counter(reason.split(":")[0] for reason in self.named.values())
        first = {reason.split(":")[0]: name for name, reason in reversed(self.named.items())}
        return "; ".join(f"{count} with {kind} (first: {first[kind]})" for kind, count in kinds.most_common())


def read_samples(sources: Iterable[str], pictures: str | None, bad: BadSamples) -> list[Sample]:
    """All good samples of some files, in their order.

    Args:
        sources: see :class:`~flowcut.training.config.DataConfig`.
        pictures: where names are looked up; ``None`` for the folder of each file.
        bad: where the others are counted.

    Raises:
        FileNotFoundError: a file or a folder is not there.
        ValueError: a file is not in LLaVA's format, or a bad sample ends the run.
    """
    named = None if pictures is None else open_store(pictures)
    samples: list[Sample] = []
    for source in sources:
        for number, told, store in rows_of(source, named):
            name = f"{told.get('id', number) if isinstance(told, dict) else number} of {source}"
            try:
                samples.append(parse_sample(name, told, store))
            except BadSampleError as error:
                bad.add(name, str(error))
    return samples


def open_store(place: str) -> MediaStore:
    """A folder or shards of pictures.

    Raises:
        FileNotFoundError: there is neither.
    """
    if place.endswith(".tar"):
        return ShardStore(shards_of(place))
    if not Path(place).is_dir():
        raise FileNotFoundError(f"There is no folder of pictures {place!r}.")
    return FileStore(Path(place))


def shards_of(pattern: str) -> list[Path]:
    """The shards that a pattern names.

    Raises:
        FileNotFoundError: there are none.
    """
    found = [Path(name) for name in sorted(glob.glob(pattern))]
    if not found:
        raise FileNotFoundError(f"No shards are named by {pattern!r}.")
    return found


def rows_of(source: str, named: MediaStore | None) -> Iterator[tuple[int, Any, MediaStore]]:
    """Number, content and store of the entries of a file or of shards.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_samples`.
    """
    if source.endswith(".tar"):
        shards = ShardStore(shards_of(source))
        for number, (key, told) in enumerate(shards.entries()):
            yield number, {"id": key, **told} if isinstance(told, dict) else told, named or shards
        return
    file = TOY / "toy.json" if source == "toy" else Path(source)
    if not file.is_file():
        raise FileNotFoundError(f"There is no data file {source!r}.")
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}.") from error
    if not isinstance(rows, list):
        raise ValueError(f"{source} holds no list of samples; LLaVA's format is a list of objects with conversations.")
    store = FileStore(file.parent) if named is None or source == "toy" else named
    for number, told in enumerate(rows):
        yield number, told, store


def parse_sample(name: str, told: Any, store: MediaStore) -> Sample:
    """One entry of a data file.

    Raises:
        BadSampleError: with the reason.
    """
    if not isinstance(told, dict) or not isinstance(told.get("conversations"), list):
        raise BadSampleError("no conversations")
    turns = [parse_turn(turn) for turn in told["conversations"]]
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in spoken or spoken[-1] != "assistant":
        raise BadSampleError("no answer at its end")
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or any(turn.role == "system" for turn in turns[1:]):
        raise BadSampleError("turns that do not alternate, question first")
    media = {kind: listed(told.get(kind)) for kind in ("image", "video")}
    for kind, names in media.items():
        marks = sum(part["type"] == kind for turn in turns for part in turn.content)
        if marks != len(names):
            raise BadSampleError(f"marks that do not fit: {marks} <{kind}> in the text, {len(names)} {kind}s named")
    if any(part["type"] != "text" for turn in turns if turn.role != "user" for part in turn.content):
        raise BadSampleError("a picture outside the questions")
    for file in (*media["image"], *media["video"]):
        try:
            there = store.has(file)
        except ValueError as error:
            raise BadSampleError(f"a picture that lies elsewhere: {error}") from error
        if not there:
            raise BadSampleError(f"a missing picture: {file} is not in {store}")
    return Sample(name, tuple(turns), tuple(media["image"]), tuple(media["video"]), store)


def parse_turn(told: Any) -> Turn:
    """One turn, its text cut where pictures and videos stand.

    Raises:
        BadSampleError: it is no turn.
    """
    role = ROLES.get(str(told.get("from", told.get("role")))) if isinstance(told, dict) else None
    text = told.get("value", told.get("content")) if role is not None else None
    if role is None or not isinstance(text, str):
        raise BadSampleError("a turn without a known role and a text")
    if role == "assistant" and not text.strip():
        raise BadSampleError("no answer: it is empty")
    content: list[dict[str, str]] = []
    pieces = MARKS.split(text)
    for place, piece in enumerate(pieces):
        if place % 2:
            content.append({"type": piece})
        elif piece:
            content.append({"type": "text", "text": piece})
    return Turn(role, tuple(content))


def listed(names: Any) -> list[str]:
    """One name, several or none, as a list."""
    if names is None:
        return []
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]
