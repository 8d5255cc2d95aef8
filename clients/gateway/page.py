"""The browser page: its files, read once and served from memory, under a policy that lets nothing else run.

A file's address holds a digest of all files (the edition), so browsers keep it for good; only the two HTML pages are
asked for again. Nothing outside `static` can be reached, since no path of a request is ever opened.
"""

import gzip
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

__all__ = ["HEADERS", "POLICY", "Edition", "routes"]

STATIC = Path(__file__).parent / "static"
TYPES = {  # what has another ending is not served
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGES = {"/": "chat", "/swarm": "swarm"}  # address -> folder of the page's modules and name of its HTML file
IMPORT = re.compile(rb"""\bfrom\s*["'](\.{1,2}/[^"']+)["']""")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",  # no string becomes HTML or code but through DOMPurify
        "trusted-types dompurify",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
KEEP = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


@dataclass(frozen=True, slots=True)
class File:
    body: bytes
    packed: bytes  # by gzip
    media_type: str
    tag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> "File":
        tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
        return cls(body, gzip.compress(body, mtime=0), media_type, tag)

    def respond(self, request: Request, caching: str) -> Response:
        headers = {**HEADERS, "ETag": self.tag, "Cache-Control": caching}
        if self.tag in (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=self.media_type)
        return Response(self.body, headers=headers, media_type=self.media_type)


class Edition:
    """All files of the page as they are now."""

    def __init__(self, folder: Path = STATIC) -> None:
        bodies = dict(_read(folder))
        digest = blake2b(digest_size=8)
        for path, body in bodies.items():
            digest.update(path.encode() + b"\0" + body)
        self.name = digest.hexdigest()
        self.pages = {at: self._page(bodies, page) for at, page in PAGES.items()}
        self._files = {
            path: File.of(body, TYPES[Path(path).suffix]) for path, body in bodies.items() if not path.endswith(".html")
        }

    @property
    def addresses(self) -> list[str]:
        return [f"/static/{self.name}/{path}" for path in self._files]

    def _page(self, bodies: Mapping[str, bytes], page: str) -> File:
        """The HTML with addresses of this edition, and a list of the modules it will import, so that they are all
        fetched at once."""
        text = bodies[f"{page}.html"].decode().replace('"/static/', f'"/static/{self.name}/')
        links = "".join(
            f'<link rel="modulepreload" href="/static/{self.name}/{path}">\n'
            for path in _reached(f"{page}/main.js", bodies)
        )
        return File.of(text.replace("</head>", f"{links}</head>").encode(), TYPES[".html"])

    async def page(self, request: Request) -> Response:
        return self.pages[request.url.path].respond(request, ASK_AGAIN)

    async def file(self, request: Request) -> Response:
        found = self._files.get(request.path_params["path"])
        if found is None or request.path_params["edition"] != self.name:
            raise HTTPException(404, headers=HEADERS)
        return found.respond(request, KEEP)


def _read(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in TYPES and path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _reached(entry: str, bodies: Mapping[str, bytes]) -> list[str]:
    """The modules that `entry` imports, and those that they import; itself first."""
    found = [entry]
    for path in found:
        for name in IMPORT.findall(bodies.get(path, b"")):
            module = posixpath.normpath(posixpath.join(posixpath.dirname(path), name.decode()))
            if module in bodies and module not in found:
                found.append(module)
    return found


def routes() -> list[BaseRoute]:
    edition = Edition()
    return [
        *(Route(address, edition.page) for address in PAGES),
        Route("/static/{edition}/{path:path}", edition.file),
    ]
