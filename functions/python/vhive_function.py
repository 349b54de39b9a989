"""Serves one function over HTTP/1.1 (and, with vhive_greeter, over HTTP/2 and gRPC) on one port.

    from vhive_function import BadRequest, serve

    def handle(request):
        return {"bytes": len(request.body)}

    serve("count", handle, help="POST / with any body: replies with its length")

The function listens on $PORT (8080 if unset, any free port if 0) of $HOST (0.0.0.0 if unset), says
so in one line on stdout, and exits with 0 on SIGTERM. One thread does everything, one request at a
time, but an idle connection keeps nobody waiting. `GET /` replies with the help.

All clones of a snapshot begin with the state that `random` had when it was taken. `POST
/vhive/after-restore` gives it a new one: name it as the annotation `vhive.dev/after-restore`. `GET
/vhive/random` shows what `random` gives next.

Imports are few on purpose, and go to the interpreter's C modules where the standard library only
dresses them up: in a microVM under emulation, importing `socket`, `signal` and `json` takes longer
than the start of the interpreter, and http.server three times as long again.
"""

import _signal
import _socket
import os
import select
import sys
import time

import vhive_json

MAX_HEAD = 64 << 10  # bytes of request line and headers
MAX_CONNECTIONS = 256  # the listener is left alone while so many are open
GRACE = 10  # seconds for replies under way once told to stop
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
}


AFTER_RESTORE = "/vhive/after-restore"
RANDOM = "/vhive/random"


class BadRequest(Exception):
    """The request cannot be served; the text says why, in words for the client."""

    def __init__(self, reason, status=400):
        super().__init__(reason)
        self.status = status


class Request:
    """One complete request: `method`, `path`, `query`, `headers` (names in lower case), `body`."""

    __slots__ = ("method", "path", "query", "headers", "body")

    def __init__(self, method, target, headers, body=b""):
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body

    def json(self, defaults):
        """The body as a JSON object with the keys of `defaults`, each of its default's type."""
        try:
            fields = vhive_json.loads(self.body) if self.body else {}
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        if type(fields) is not dict:
            raise BadRequest("the body is not a JSON object")
        for key, value in fields.items():
            if key not in defaults:
                raise BadRequest(f"unknown field {key!r}, expected {', '.join(defaults)}")
            if type(value) is not type(defaults[key]):
                raise BadRequest(f"{key} must be a JSON {JSON_NAMES[type(defaults[key])]}")
        return {**defaults, **fields}


JSON_NAMES = {str: "string", int: "integer", float: "number with a fraction", bool: "boolean"}


def at_most(name, value, least, most):
    """Returns `value`, or refuses it if it is not within the bounds."""
    if not least <= value <= most:
        raise BadRequest(f"{name} must be from {least} to {most}")
    return value


class Function:
    """What is served: the handler and its limits."""

    def __init__(self, name, handle, help, max_body, greet, after_restore):
        self.name = name
        self.handle = handle
        self.help = help
        self.max_body = max_body
        self.greet = greet
        self.after_restore = after_restore

    def answer(self, request):
        """Returns status, media type and body. Never raises."""
        try:
            return 200, *self._body(request)
        except BadRequest as error:
            return error.status, "application/json", json_line({"error": str(error)})
        except Exception as error:  # one bad request must not end the function
            sys.excepthook(type(error), error, error.__traceback__)
            return 500, "application/json", json_line({"error": f"{type(error).__name__}: {error}"})

    def _body(self, request):
        if request.path == AFTER_RESTORE and request.method == "POST":
            renew()
            if self.after_restore:
                self.after_restore()
            return "text/plain; charset=utf-8", b""
        if request.path == RANDOM and request.method == "GET":
            import random

            return "application/json", json_line({"random": random.getrandbits(53)})
        if request.path != "/":
            raise BadRequest("the only path is /", 404)
        if request.method in ("GET", "HEAD"):
            return "text/plain; charset=utf-8", self.help.encode() + b"\n"
        if request.method != "POST":
            raise BadRequest("use POST or GET", 405)
        return "application/json", json_line(self.handle(request))


def renew():
    """Seeds Python's own generator anew from the kernel's, if anybody has imported it."""
    random = sys.modules.get("random")
    if random:
        random.seed()


def json_line(value):
    return vhive_json.line(value).encode()


class Http1:
    """HTTP/1.1 on one connection: bytes in, bytes out.

    Source: RFC 9112.
    """

    def __init__(self, function):
        self.function = function
        self.data = bytearray()
        self.head = None  # the request whose body is still to come
        self.remaining = 0  # bytes of body to come, or None while it is chunked
        self.closing = False

    def receive(self, data):
        """Returns what to send in answer to `data`."""
        self.data += data
        out = bytearray()
        try:
            while not self.closing and self._step(out):
                pass
        except BadRequest as error:
            self.closing = True
            body = json_line({"error": str(error)})
            out += self._reply(error.status, "application/json", body)
        return out

    def _step(self, out):
        """Reads a head or a body; returns whether there may be more."""
        if self.head is None:
            end = self.data.find(b"\r\n\r\n")
            if end < 0 and len(self.data) > MAX_HEAD or end > MAX_HEAD:
                raise BadRequest(f"the headers are longer than {MAX_HEAD} bytes", 431)
            if end < 0:
                return False
            self.head, version = parse_head(bytes(self.data[:end]))
            del self.data[: end + 4]
            self.remaining = body_length(self.head.headers, self.function.max_body)
            tokens = self.head.headers.get("connection", "").lower()
            self.last = "close" in tokens or version == "HTTP/1.0" and "keep-alive" not in tokens
            if self.head.headers.get("expect", "").lower() == "100-continue":
                out += b"HTTP/1.1 100 Continue\r\n\r\n"
        if self.remaining is None:
            body = self._chunks()
            if body is None:
                return False
        else:
            if len(self.data) < self.remaining:
                return False
            body = bytes(self.data[: self.remaining])
            del self.data[: self.remaining]
        request, self.head = self.head, None
        request.body = body
        self.closing = self.last
        status, media_type, body = self.function.answer(request)
        out += self._reply(status, media_type, body, with_body=request.method != "HEAD")
        return True

    def _chunks(self):
        """The whole chunked body, or None if the end has not arrived."""
        data, body = self.data, self.head.body
        while True:
            end = data.find(b"\r\n", 0, 1024)
            if end < 0 and len(data) >= 1024:
                raise BadRequest("a chunk's size line is too long")
            if end < 0:
                return None
            size = data[:end].split(b";")[0].strip()
            if not size or len(size) > 8 or size.strip(b"0123456789abcdefABCDEF"):
                raise BadRequest("a chunk's size is not a number")
            size = int(size, 16)
            if len(body) + size > self.function.max_body:
                raise too_long(self.function.max_body)
            if size == 0:
                break
            start, end = end + 2, end + 2 + size
            if len(data) < end + 2:
                return None
            if data[end : end + 2] != b"\r\n":
                raise BadRequest("a chunk does not end where it said")
            body += data[start:end]
            del data[: end + 2]
        trailers = data.find(b"\r\n\r\n", end, end + MAX_HEAD)
        if trailers < 0 and len(data) > MAX_HEAD:
            raise BadRequest("the trailers are too long", 431)
        if trailers < 0:
            return None
        del data[: trailers + 4]
        return bytes(body)

    def _reply(self, status, media_type, body, with_body=True):
        connection = "close" if self.closing else "keep-alive"
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {media_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
        )
        return head.encode() + (body if with_body else b"")


def parse_head(head):
    """Returns the request without its body, and the version."""
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0") or not parts[1].startswith("/"):
        raise BadRequest("not an HTTP/1.1 request")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest("a header is not `name: value`")
        name, value = name.lower(), value.strip()
        if name in ("content-length", "transfer-encoding") and name in headers:
            raise BadRequest(f"{name} is given twice")
        headers[name] = value
    return Request(parts[0], parts[1], headers, bytearray()), parts[2]


def body_length(headers, most):
    """Bytes of body that follow the head; None if it comes in chunks."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length", "0")
    if coding is not None:
        if "content-length" in headers:
            raise BadRequest("both content-length and transfer-encoding are given")
        if coding.lower() != "chunked":
            raise BadRequest("the only transfer encoding is chunked", 501)
        return None
    if not length.isascii() or not length.isdigit():
        raise BadRequest("content-length is not a number")
    if len(length) > 15 or int(length) > most:
        raise too_long(most)
    return int(length)


def too_long(most):
    return BadRequest(f"the body is longer than {most} bytes", 413)


class Connection:
    """One client: its socket, its protocol once known, and what is still to be sent to it."""

    def __init__(self, function, sock):
        self.function = function
        self.sock = sock
        self.protocol = None
        self.early = b""  # bytes that came before the protocol was clear
        self.out = bytearray()

    def read(self):
        """Takes what has arrived; returns whether the connection goes on."""
        data = self.sock.recv(256 << 10)
        if not data:
            return False
        if self.protocol is None:
            data = self.early = self.early + data
            if self.function.greet and len(data) < len(H2_PREFACE) and H2_PREFACE.startswith(data):
                return True
            if self.function.greet and data.startswith(H2_PREFACE):
                from vhive_greeter import Http2

                self.protocol = Http2(self.function)
            else:
                self.protocol = Http1(self.function)
            self.early = b""
        self.out += self.protocol.receive(data)
        return self.write()

    def write(self):
        """Sends what can be sent; returns whether the connection goes on."""
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            pass
        return bool(self.out) or not self.protocol or not self.protocol.closing

    def events(self):
        """While replies wait to be read by the client, its next requests wait too."""
        return select.POLLOUT if self.out else select.POLLIN


class Server:
    """The loop over the listener, the connections and the signal to stop."""

    def __init__(self, function, listener, stop):
        self.function = function
        self.listener = listener
        self.stop = stop
        self.poll = select.poll()
        self.connections = {}
        for sock in (listener, stop):
            sock.setblocking(False)
            self.poll.register(sock, select.POLLIN)

    def run(self):
        deadline = None
        while deadline is None or self.connections:
            wait = None if deadline is None else max(0, deadline - time.monotonic()) * 1000
            events = self.poll.poll(wait)
            if deadline is not None and not events:
                return
            for fd, _ in events:
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == self.stop.fileno():
                    deadline = time.monotonic() + GRACE
                    self.drain()
                elif fd in self.connections:
                    self.serve(fd)

    def accept(self):
        try:
            fd, _ = self.listener._accept()
        except OSError:
            return  # the client has gone, or there is no descriptor until one is closed
        sock = _socket.socket(fileno=fd)
        sock.setblocking(False)
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.connections[fd] = Connection(self.function, sock)
        self.poll.register(sock, select.POLLIN)
        if len(self.connections) == MAX_CONNECTIONS:
            self.poll.unregister(self.listener)

    def serve(self, fd):
        connection = self.connections[fd]
        try:
            goes_on = connection.write() if connection.out else connection.read()
        except OSError:
            goes_on = False
        if goes_on:
            self.poll.modify(fd, connection.events())
        else:
            self.close(fd)

    def close(self, fd):
        self.poll.unregister(fd)
        self.connections.pop(fd).sock.close()
        if len(self.connections) == MAX_CONNECTIONS - 1 and self.listener.fileno() >= 0:
            self.poll.register(self.listener, select.POLLIN)

    def drain(self):
        """Accepts nothing more and keeps only connections with a reply to be sent."""
        self.poll.unregister(self.stop)
        if len(self.connections) < MAX_CONNECTIONS:
            self.poll.unregister(self.listener)
        self.listener.close()
        for fd in [fd for fd, connection in self.connections.items() if not connection.out]:
            self.close(fd)
        for connection in self.connections.values():
            connection.protocol.closing = True


def serve(name, handle, help, max_body=1 << 20, greet=None, after_restore=None):
    """Serves until SIGTERM or SIGINT.

    `handle(request)` returns a flat dictionary, which is sent as JSON, or raises BadRequest. `greet(name)` answers
    helloworld.Greeter/SayHello; with it the port also speaks HTTP/2. `after_restore()` renews what
    must differ between the clones of a snapshot, beside `random`.
    """
    host, port = os.environ.get("HOST", "0.0.0.0"), os.environ.get("PORT", "8080")
    stop, wake = _socket.socketpair()
    wake.setblocking(False)
    _signal.set_wakeup_fd(wake.fileno())
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda *_: None)
    try:
        listener = _socket.socket()
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(128)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"{name}: cannot listen on {host}:{port}: {error}")
    host, port = listener.getsockname()
    print(f"{name} listening on {host}:{port}", flush=True)
    Server(Function(name, handle, help, max_body, greet, after_restore), listener, stop).run()
