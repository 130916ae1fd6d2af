"""A running server: what its metrics count, what it says to requests it cannot answer, and that it goes on serving."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import asking
import checkpoints
import pytest
import tiny
import torch
from PIL import Image

from flowcut import attach, make_method

pytest.importorskip("vllm")

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_embeddings.py"
BUDGET = 8
TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %} "
    "{% endfor %}{% endfor %}ASSISTANT :"
)
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
OPTIONS += ["--kv-cache-memory-bytes", str(2**26)]


@dataclass(frozen=True)
class Server:
    """Where it listens, and which model it serves."""

    url: str
    model: str

    def post(self, content: list[dict[str, Any]], **more: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer to one message."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        body |= {"max_tokens": 4, **more}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metric(self, name: str) -> float:
        """The sum of one of the engine's counters."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found, name
        return sum(map(float, found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA that can be talked to."""
    model, processor = checkpoints.llava()
    processor.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("served")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@contextmanager
def running(command: list[str], model: Path, log: Path) -> Iterator[Server]:
    """A server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file, env=environment)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}", str(model))
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`flowcut serve`, as a user starts it."""
    command = [sys.executable, "-m", "flowcut.cli", "serve", str(folder), "--method", "flowcut"]
    command += ["--target-num", str(BUDGET), *OPTIONS]
    with running(command, folder, tmp_path_factory.mktemp("log") / "server.log") as one:
        yield one


def png(seed: int) -> bytes:
    """A picture file."""
    packed = BytesIO()
    asking.picture("", seed).save(packed, "png")
    return packed.getvalue()


def sent(data: bytes, kind: str = "image", ending: str = "png") -> dict[str, Any]:
    """A part of a message with a file in it."""
    url = f"data:{kind}/{ending};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    """A part of a message in words."""
    return {"type": "text", "text": words}


@torch.no_grad()
def answer_of(folder: Path, picture: Path | bytes, words: str, method: str | None) -> tuple[str, int]:
    """What transformers answers, and how many tokens the uncut prompt has."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    image = Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture).convert("RGB")
    messages = [{"role": "user", "content": [{"type": "image"}, text(words)]}]
    prompt = processor.apply_chat_template(messages)
    inputs = processor(text=prompt, images=image, return_tensors="pt", add_special_tokens=False)
    with attach(model, make_method(method)):
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return processor.decode(out[0, length:], skip_special_tokens=True), length


def test_the_engine_counts_cut_prompts_and_knows_a_picture_again(server: Server, folder: Path) -> None:
    expected, uncut = answer_of(folder, png(1), "what is shown ?", f"flowcut(target_num={BUDGET})")
    names = ("vllm:prompt_tokens_total", "vllm:mm_cache_queries_total", "vllm:mm_cache_hits_total")
    before = [server.metric(name) for name in names]
    status, first = server.post([sent(png(1)), text("what is shown ?")])
    assert status == 200 and first["choices"][0]["message"]["content"].split() == expected.split()
    assert first["usage"]["prompt_tokens"] == uncut - tiny.PATCHES + BUDGET
    _, second = server.post([sent(png(1)), text("what word1 ?")])
    prompts, queries, hits = (server.metric(name) - one for name, one in zip(names, before, strict=True))
    assert prompts == first["usage"]["prompt_tokens"] + second["usage"]["prompt_tokens"]
    assert (queries, hits) == (2, 1)


def bad(broken: bytes) -> list[tuple[list[dict[str, Any]], dict[str, Any], str]]:
    """Requests that cannot be answered: content, further entries, and a word of what the server says."""
    ask = text("what ?")
    return [
        ([sent(b"no picture at all"), ask], {}, "image"),
        ([sent(broken), ask], {}, "image"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}, ask], {}, "base64|decode|data"),
        ([{"type": "image_url", "image_url": {"url": "file:///nothing.png"}}, ask], {}, "local|file|allowed"),
        ([sent(b"no video", "video", "mp4"), ask], {}, "video"),
        ([{"type": "image_embeds", "image_embeds": "AAAA"}, ask], {}, "enable-mm-embeds"),
        ([sent(png(1)), ask], {"model": "another"}, "another"),
        ([sent(png(1)), ask], {"max_tokens": 5000}, "max_tokens|context|length"),
        ([sent(png(seed)) for seed in range(3)] + [text("word1 " * 600)], {}, "length|tokens"),
    ]


def test_it_goes_on_serving_behind_requests_that_cannot_be_answered(server: Server) -> None:
    good = [sent(png(4)), text("what is shown ?")]
    status, expected = server.post(good)
    assert status == 200
    for content, more, word in bad(png(2)[:200]):
        status, told = server.post(content, **more)
        message = json.dumps(told)
        assert status >= 400 and re.search(word, message), (status, message)
        status, again = server.post(good)
        assert status == 200 and again["choices"][0]["message"] == expected["choices"][0]["message"]


def test_embeddings_of_another_process_are_answered(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png(1))
    expected, uncut = answer_of(
        folder, picture, "what is shown ?", f"flowcut_plus(positions=compact,target_num={BUDGET})"
    )
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *OPTIONS]
    command += ["--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0}']
    with running(command, folder, tmp_path / "server.log") as server:
        asked = [picture, "what is shown ?", "--model", folder, "--server", server.url]
        told = subprocess.run(
            [sys.executable, EXAMPLE, *asked, "--target-num", str(BUDGET), "--max-tokens", "4"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert told.returncode == 0, told.stderr
    answer, counted = told.stdout.splitlines()
    assert answer.split() == expected.split()
    assert counted.startswith(f"{uncut - tiny.PATCHES + BUDGET} prompt tokens")
