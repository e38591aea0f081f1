"""A real HTTP server on this machine that does what servers do on bad days.

Each path has a list of behaviours; every request takes the next one, and the last one stays.
"""

import email.utils
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves in a thread; `asked` is a list of (path, headers) of all requests so far."""

    def __init__(self):
        self.behaviours = {}
        self.asked = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with outer.lock:
                    outer.asked.append((self.path, dict(self.headers)))
                    waiting = outer.behaviours.get(self.path) or [status(404)]
                    behave = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                try:
                    behave(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.http.closing = self.closing
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def serve(self, path, *behaviours):
        """Set what happens at `path`; returns its address."""
        self.behaviours[path] = list(behaviours)
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def ranges(self, path):
        """The Range header of each request for `path`."""
        return [headers.get("Range") for asked, headers in self.asked if asked == path]

    def close(self):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


def _head(handler, code, **headers):
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def _start(handler, body, etag, ranges):
    """Send the head for what was asked; returns where in the body the answer begins."""
    marks = {"ETag": etag} if etag else {}
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    told = handler.headers.get("If-Range")
    if ranges and wanted and (told is None or told == etag):
        first = int(wanted[1])
        if first >= len(body):
            _head(handler, 416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
            return len(body)
        place = f"bytes {first}-{len(body) - 1}/{len(body)}"
        _head(handler, 206, Content_Length=len(body) - first, Content_Range=place, **marks)
        return first
    _head(handler, 200, Content_Length=len(body), **marks)
    return 0


def whole(body, etag='"one"', ranges=True, pause=0.0, piece=1 << 16):
    """All of `body`, or the range asked for; `pause` seconds after every `piece` bytes."""

    def behave(handler):
        first = _start(handler, body, etag, ranges)
        for place in range(first, len(body), piece):
            handler.wfile.write(body[place : place + piece])
            time.sleep(pause)

    return behave


def broken(body, count, etag='"one"', ranges=True, reset=False):
    """The head of a whole answer, `count` bytes of it, and the connection is gone."""

    def behave(handler):
        first = _start(handler, body, etag, ranges)
        handler.wfile.write(body[first : first + count])
        handler.wfile.flush()
        if reset:
            time.sleep(0.2)  # let what was sent be read before the reset throws it away
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
        handler.close_connection = True

    return behave


def silent(body, count, etag='"one"'):
    """`count` bytes, and then nothing more, with the connection open."""

    def behave(handler):
        first = _start(handler, body, etag, True)
        handler.wfile.write(body[first : first + count])
        handler.wfile.flush()
        handler.server.closing.wait(5)
        handler.close_connection = True

    return behave


def status(code, **headers):
    """An answer without the file."""

    def behave(handler):
        _head(handler, code, Content_Length=0, **headers)

    return behave


def redirect(to):
    return status(302, Location=to)


def chunked(body):
    """The body without telling its length before."""

    def behave(handler):
        _head(handler, 200, Transfer_Encoding="chunked")
        for place in range(0, len(body), 1000):
            block = body[place : place + 1000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        handler.wfile.write(b"0\r\n\r\n")

    return behave


def unmeasured(body):
    """The body without any length: it ends where the connection does."""

    def behave(handler):
        _head(handler, 200, Connection="close")
        handler.wfile.write(body)
        handler.close_connection = True

    return behave


def lying(body, length):
    """`body` under a Content-Length of `length`."""

    def behave(handler):
        _head(handler, 200, Content_Length=length)
        handler.wfile.write(body)
        handler.close_connection = True

    return behave


def other_range(body, etag='"one"'):
    """A 206 that begins at 0, whatever was asked."""

    def behave(handler):
        _head(handler, 206, Content_Length=len(body), Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}", ETag=etag)
        handler.wfile.write(body)

    return behave


def deaf_to_if_range(body, etag, total=None):
    """A 206 with the range asked for, of whatever version is there now; `total` "*" keeps its length secret."""

    def behave(handler):
        first = int(re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"])[1])
        place = f"bytes {first}-{len(body) - 1}/{total or len(body)}"
        _head(handler, 206, Content_Length=len(body) - first, Content_Range=place, ETag=etag)
        handler.wfile.write(body[first:])

    return behave


def packed(body):
    def behave(handler):
        _head(handler, 200, Content_Length=len(body), Content_Encoding="gzip")
        handler.wfile.write(body)

    return behave


def in_seconds(seconds):
    """A date for Retry-After."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)
