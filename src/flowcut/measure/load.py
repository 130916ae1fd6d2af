"""Load on an OpenAI-compatible server: clients that ask about pictures at the same time, and what they wait for."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import FlowCutError
from ..inputs.pictures import first_line

TIMEOUT = 600.0
"""Seconds that an answer may take."""

KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""Endings of picture files, and what a data address calls their kind."""

WATCHED = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generated_tokens": "vllm:generation_tokens_total",
    "cache_use": "vllm:kv_cache_usage_perc",
}
"""What is read from vLLM's metrics."""


@dataclass
class Load:
    """What came of a number of requests.

    Attributes:
        server: its address.
        seconds: from the first request to the last answer, of every round.
        first_token: seconds until the first token of every request.
        tokens: generated tokens of every request.
        prompt_tokens: prompt tokens of every request, as the server counts them.
        cache_use: the largest share of the key/value cache in use that was seen; ``None`` where the server has no
            metrics.
        failures: what went wrong, one line each.
    """

    server: str
    seconds: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    cache_use: float | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def requests_per_second(self) -> float:
        """Of all rounds together; 0 where none was answered."""
        return len(self.first_token) / sum(self.seconds) if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The figures that are reported."""
        answered = len(self.first_token)
        return {
            "server": self.server,
            "answered": answered,
            "failed": len(self.failures),
            "requests_per_second": self.requests_per_second,
            "first_token": median(self.first_token) if answered else None,
            "first_token_90": sorted(self.first_token)[int(0.9 * (answered - 1))] if answered else None,
            "tokens_per_second": sum(self.tokens) / sum(self.seconds) if self.seconds else 0.0,
            "prompt_tokens": sum(self.prompt_tokens) / answered if answered else None,
            "cache_use": self.cache_use,
        }


def measure_load(
    servers: Sequence[str],
    pictures: Sequence[Path],
    question: str,
    *,
    clients: int,
    requests: int,
    rounds: int,
    max_tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Load]:
    """Ask servers in turns, each in every round, behind one round that warms up and is not counted.

    Args:
        servers: addresses such as ``http://localhost:8000``.
        pictures: asked about one after the other, the same for every server. Where there are fewer than requests, they
            repeat, and servers with caches of prompts and pictures need not read them again.
        question: asked about each, with the request's number behind it.
        clients: how many requests are in flight.
        requests: in every round.
        rounds: that are counted.
        max_tokens: of every answer.
        advance: called for every request.

    Raises:
        FlowCutError: a server cannot be reached, or serves no model.
    """
    urls = [data_url(path) for path in pictures]
    models = [served_model(server) for server in servers]
    loads = [Load(server) for server in servers]
    asked = 0
    for turn in range(rounds + 1):
        numbers = range(asked, asked + (requests if turn else clients))
        asked = numbers.stop
        for load, model in zip(loads, models, strict=True):
            bodies = [
                body_of(model, urls[number % len(urls)], f"{question} ({number})", max_tokens) for number in numbers
            ]
            into = load if turn else Load(load.server)
            run_round(into, bodies, clients, advance)
            if not turn and into.failures:
                raise FlowCutError(f"{load.server} did not answer: {into.failures[0]}")
    return loads


def run_round(load: Load, bodies: Sequence[dict[str, Any]], clients: int, advance: Callable[[], None]) -> None:
    """Send ``bodies`` with so many in flight, and add what came of them to ``load``."""
    done = threading.Event()
    watcher = threading.Thread(target=watch_cache, args=(load, done), daemon=True)
    watcher.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for answer in pool.map(lambda body: ask(load.server, body), bodies):
            advance()
            if isinstance(answer, str):
                load.failures.append(answer)
                continue
            first, prompt, generated = answer
            load.first_token.append(first)
            load.prompt_tokens.append(prompt)
            load.tokens.append(generated)
    load.seconds.append(time.perf_counter() - began)
    done.set()
    watcher.join()


def ask(server: str, body: dict[str, Any]) -> tuple[float, int, int] | str:
    """Seconds to the first token, prompt tokens and generated tokens of one request; or what went wrong."""
    request = urllib.request.Request(
        f"{server}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    began = time.perf_counter()
    first: float | None = None
    usage: dict[str, int] = {}
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            for line in answer:
                text = line.decode().strip().removeprefix("data: ")
                if not text.startswith("{"):
                    continue
                part = json.loads(text)
                usage = part.get("usage") or usage
                if first is None and part.get("choices") and part["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - began
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode(errors='replace')[:300]}"
    except (OSError, ValueError) as error:
        return first_line(error)
    first = time.perf_counter() - began if first is None else first
    return first, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))


def body_of(model: str, url: str, question: str, max_tokens: int) -> dict[str, Any]:
    """A request for a greedy answer of exactly ``max_tokens`` tokens, streamed, with its counts at the end."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def picture_files(given: str | None) -> list[Path]:
    """The pictures that are asked about, from a file or a folder.

    Raises:
        ValueError: none was named.
        FileNotFoundError: there is none.
    """
    if given is None:
        raise ValueError("Name what the servers are asked about: --image with a picture or a folder of pictures.")
    path = Path(given)
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in KINDS) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"No PNG or JPEG picture at {given}.")
    return found


def data_url(path: Path) -> str:
    """A picture file as the address that a request may hold."""
    kind = KINDS.get(path.suffix.lower(), "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def served_model(server: str) -> str:
    """The name of the first model that a server has.

    Raises:
        FlowCutError: it cannot be reached, or has none.
    """
    try:
        with urllib.request.urlopen(f"{server}/v1/models", timeout=30) as answer:
            models: list[dict[str, Any]] = json.load(answer)["data"]
            return str(models[0]["id"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise FlowCutError(
            f"No OpenAI-compatible server answers at {server} ({first_line(error)}). Start one with `flowcut serve`, "
            "wait until it listens, and give its address, such as http://localhost:8000."
        ) from error


def metrics_of(server: str) -> dict[str, float]:
    """What vLLM's metrics say; empty where a server has none."""
    try:
        with urllib.request.urlopen(f"{server}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for name, metric in WATCHED.items():
        values = re.findall(rf"^{re.escape(metric)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        if values:
            found[name] = sum(float(value) for value in values)
    return found


def watch_cache(load: Load, done: threading.Event) -> None:
    """Note the largest use of the server's cache until ``done`` is set."""
    while not done.wait(0.5):
        use = metrics_of(load.server).get("cache_use")
        if use is not None:
            load.cache_use = max(use, load.cache_use or 0.0)
