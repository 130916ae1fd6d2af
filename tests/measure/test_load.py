"""Load on a server: what is counted of answers, failures and metrics, on a small server of our own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.errors import FlowCutError
from flowcut.measure.load import data_url, measure_load, metrics_of, picture_files


class Handler(BaseHTTPRequestHandler):
    """Answers as vLLM does: models, metrics, and answers as a stream with their counts at the end."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012
    broken = False

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/metrics":
            text = 'vllm:prompt_tokens_total{model="m"} 80.0\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'
            return self.send(text)
        return self.send(json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if self.broken and len(self.asked) > 3:
            return self.send_error(400, "too long")
        parts = [{"choices": [{"delta": {"content": word}}]} for word in ("a", "b")]
        parts.append({"choices": [], "usage": {"prompt_tokens": 80, "completion_tokens": 2}})
        return self.send("".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n")

    def send(self, text: str) -> None:
        """A whole answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address."""
    monkeypatch.setattr(Handler, "asked", [])
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


def test_every_request_is_counted_once(server: str, tmp_path: Path) -> None:
    pictures = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in pictures:
        tiny_checkpoint.save_picture(path)
    loads = measure_load([server, server], pictures, "what?", clients=3, requests=5, rounds=2, max_tokens=2)
    for load in loads:
        told = load.as_dict()
        assert (told["answered"], told["failed"], told["prompt_tokens"]) == (10, 0, 80)
        assert sum(load.tokens) == 20 and told["requests_per_second"] > 0
    texts = [body["messages"][0]["content"][1]["text"] for body in Handler.asked]
    assert len(texts) == 2 * len(set(texts)) == 2 * (3 + 2 * 5)
    assert {body["messages"][0]["content"][0]["image_url"]["url"] for body in Handler.asked} == {
        data_url(path) for path in pictures
    }
    assert metrics_of(server) == {"prompt_tokens": 80.0, "cache_use": 0.25}


def test_failures_are_told(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "broken", True)
    tiny_checkpoint.save_picture(tmp_path / "a.png")
    arguments = ["bench", "--server", server, "--image", str(tmp_path), "--clients", "2", "--requests", "3"]
    result = CliRunner().invoke(app, [*arguments, "--rounds", "1", "--new-tokens", "2"])
    assert result.exit_code == 1
    assert "2 requests failed" in result.output and "400" in result.output


def test_no_server_and_no_picture(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    tiny_checkpoint.save_picture(picture)
    with pytest.raises(FlowCutError, match="flowcut serve"):
        measure_load(["http://127.0.0.1:9"], [picture], "?", clients=1, requests=1, rounds=1, max_tokens=1)
    with pytest.raises(FileNotFoundError, match="No PNG or JPEG"):
        picture_files(str(tmp_path / "none.png"))
    with pytest.raises(ValueError, match="--image"):
        picture_files(None)
