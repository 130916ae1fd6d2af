"""Errors inside a harness end the run, and a harness's padding is not computed.

lmms-eval's command line ends with status 0 after most exceptions, and some of its model classes take whatever
``generate`` raises for an empty answer. Ours therefore leave as :class:`StoppedRun`, which no ``except Exception``
catches: the interpreter prints its message and ends with status 1.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PADDING = "__padding_only__"
"""In a request's metadata: it only makes the processes' numbers of requests equal."""


class StoppedRun(SystemExit):
    """An error that ends the process with status 1 and its message on stderr."""


@contextmanager
def ending_the_run(doing: str) -> Iterator[None]:
    """Turn every exception inside the block into a :class:`StoppedRun`, its traceback printed first.

    Args:
        doing: what is being done, for the message.
    """
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        raise StoppedRun(f"flowcut: {doing} failed, so this run ends: {type(error).__name__}: {message}") from error


def stopping(function: Callable[..., Any], doing: str) -> Callable[..., Any]:
    """The function, inside :func:`ending_the_run`."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with ending_the_run(doing):
            return function(*args, **kwargs)

    return called


def without_padding(function: Callable[[list[Any]], Sequence[Any]]) -> Callable[[list[Any]], list[Any]]:
    """A model's answering of requests, in which a request that only pads gets the answer of the one it repeats.

    It is not computed, so that it counts in no costs. One that repeats none of this process's requests is answered.
    """

    def answered(requests: list[Any]) -> list[Any]:
        known = {key_of(request) for request in requests if not is_padding(request)}
        places = [
            place for place, request in enumerate(requests) if not is_padding(request) or key_of(request) not in known
        ]
        said = function([requests[place] for place in places]) if places else []
        answers = dict(zip(places, said, strict=True))
        by_key = {key_of(requests[place]): answer for place, answer in answers.items()}
        return [answers.get(place, by_key[key_of(request)]) for place, request in enumerate(requests)]

    return answered


def is_padding(request: Any) -> bool:
    """Whether a request only pads."""
    return bool((request.metadata or {}).get(PADDING))


def key_of(request: Any) -> tuple[Any, ...]:
    """What tells a request from others of a run."""
    return request.request_type, request.task_name, request.doc_id, request.idx
