"""The page on a port of this machine, by itself: no request leaves it, nothing stays on its disk."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

CLOSED = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
"""What the browser may load: from this server alone."""

MEMORY = Path("/dev/shm")


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Where uploads lie until they have been read: in memory where the system has such a folder."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    return tempfile.TemporaryDirectory(prefix="flowcut-app-", dir=MEMORY if in_memory else None)


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: says what to do.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"Nothing can listen at {host}, port {port}: {error.strerror or error}. "
            "Give another --port (0 takes a free one)."
        ) from error


def serve_page(build: Callable[[], Any], host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve a page until the program is ended.

    Args:
        build: makes the ``gradio.Blocks``; called when Gradio has been told to keep to itself.
        host, port: where.
        ready: told the page's address when it can be opened.

    Raises:
        OSError: the address or the port cannot be had.
    """
    with open_port(host, port) as listening, scratch_folder() as scratch:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": scratch,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI, Request, Response

        from .page import STYLE
        from .uploads import MEGABYTES

        app = FastAPI(openapi_url=None)

        async def keep_to_itself(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
            response = await go_on(request)
            response.headers["Content-Security-Policy"] = CLOSED
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Referrer-Policy"] = "no-referrer"
            return response

        app.middleware("http")(keep_to_itself)
        fonts = ("system-ui", "sans-serif")
        theme = gr.themes.Default(font=fonts, font_mono=("ui-monospace", "monospace"))
        mounted = gr.mount_gradio_app(
            app,
            build(),
            path="/",
            max_file_size=MEGABYTES * 2**20,
            show_error=True,
            footer_links=[],
            theme=theme,
            css=STYLE,
            ssr_mode=False,
        )
        ready(f"http://{host}:{listening.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(mounted, log_level="warning")).run(sockets=[listening])
