"""HTTP/2 without TLS, and the gRPC Greeter, for functions that ask for it.

Imported by vhive_function when a client opens with the HTTP/2 preface, so that a function that is
only ever called over HTTP/1.1 does not pay for it; a function that wants it ready imports it itself.

Source: RFC 9113; gRPC over HTTP/2 (PROTOCOL-HTTP2.md); helloworld.proto of the gRPC examples.
"""

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from vhive_function import BadRequest, Request, too_long

MAX_STREAMS = 128

OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 8, 12, 13


class CallError(Exception):
    """A call that fails with a gRPC status."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code = code


class Http2:
    """HTTP/2 on one connection: bytes in, bytes out."""

    def __init__(self, function):
        self.function = function
        self.closing = False
        self.requests = {}  # stream: request whose body is still to come, or None once answered
        self.unsent = {}  # stream: [rest of the body, trailers], waiting for the client's window
        config = H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = H2Connection(config)
        self.h2.initiate_connection()
        self.h2.update_settings({3: MAX_STREAMS})  # SETTINGS_MAX_CONCURRENT_STREAMS

    def receive(self, data):
        """Returns what to send in answer to `data`."""
        try:
            for event in self.h2.receive_data(data):
                self._event(event)
        except (ProtocolError, UnicodeDecodeError):
            self.closing = True  # h2 has queued the GOAWAY that says why
        return self.h2.data_to_send()

    def _event(self, event):
        match event:
            case RequestReceived():
                headers = dict(event.headers)
                target = headers.get(":path", "")
                method = headers.get(":method", "")
                self.requests[event.stream_id] = Request(method, target, headers, bytearray())
            case DataReceived():
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
                request = self.requests.get(event.stream_id)
                if request is None:
                    return
                request.body += event.data
                if len(request.body) > self.function.max_body:
                    self.requests[event.stream_id] = None
                    self._refuse(event.stream_id, request)
            case StreamEnded():
                request = self.requests.pop(event.stream_id, None)
                if request is not None:
                    self._answer(event.stream_id, request)
            case StreamReset():
                self.requests.pop(event.stream_id, None)
                self.unsent.pop(event.stream_id, None)
            case WindowUpdated():
                for stream in list(self.unsent):
                    self._send(stream)
            case ConnectionTerminated():
                self.closing = True

    def _answer(self, stream, request):
        request.body = bytes(request.body)
        if is_call(request):
            self._call(stream, request)
            return
        status, media_type, body = self.function.answer(request)
        self._reply(stream, status, media_type, body)

    def _refuse(self, stream, request):
        error = too_long(self.function.max_body)
        if is_call(request):
            self._fail(stream, CallError(RESOURCE_EXHAUSTED, str(error)))
        else:
            body = b'{"error":"%s"}\n' % str(error).encode()
            self._reply(stream, error.status, "application/json", body)

    def _call(self, stream, request):
        try:
            if request.path != "/helloworld.Greeter/SayHello":
                raise CallError(UNIMPLEMENTED, f"{self.function.name} has no {request.path}")
            greeting = self.function.greet(decoded(request.body))
        except CallError as error:
            self._fail(stream, error)
        except BadRequest as error:
            self._fail(stream, CallError(INVALID_ARGUMENT, str(error)))
        except Exception as error:  # one bad call must not end the function
            self._fail(stream, CallError(INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
            self.unsent[stream] = [encoded(greeting), [("grpc-status", str(OK))]]
            self._send(stream)

    def _fail(self, stream, error):
        head = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", str(error.code)),
            ("grpc-message", percent_encoded(str(error))),
        ]
        self.h2.send_headers(stream, head, end_stream=True)

    def _reply(self, stream, status, media_type, body):
        head = [
            (":status", str(status)),
            ("content-type", media_type),
            ("content-length", str(len(body))),
        ]
        self.h2.send_headers(stream, head)
        self.unsent[stream] = [body, None]
        self._send(stream)

    def _send(self, stream):
        """Sends as much of a stream's body as the client's window allows."""
        body, trailers = self.unsent[stream]
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                self.unsent[stream][0] = body
                return
            part, body = body[:room], body[room:]
            self.h2.send_data(stream, part, end_stream=not body and trailers is None)
        del self.unsent[stream]
        if trailers is not None:
            self.h2.send_headers(stream, trailers, end_stream=True)


def is_call(request):
    return request.headers.get("content-type", "").startswith("application/grpc")


def decoded(frame):
    """The `name` of a HelloRequest in a gRPC frame; unknown fields are skipped."""
    if len(frame) < 5 or int.from_bytes(frame[1:5], "big") != len(frame) - 5:
        raise CallError(INVALID_ARGUMENT, "the request is not exactly one message")
    if frame[0] != 0:
        raise CallError(UNIMPLEMENTED, "compression is not supported")
    name, at = b"", 5
    while at < len(frame):
        tag, at = varint(frame, at)
        size = {0: None, 1: 8, 2: None, 5: 4}.get(tag & 7, -1)
        if tag & 7 == 0:
            _, at = varint(frame, at)
            continue
        if tag & 7 == 2:
            size, at = varint(frame, at)
        if size < 0 or at + size > len(frame) or tag >> 3 == 0:
            raise CallError(INVALID_ARGUMENT, "the request is not a HelloRequest")
        if tag == 1 << 3 | 2:
            name = frame[at : at + size]
        at += size
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise CallError(INVALID_ARGUMENT, "the name is not UTF-8") from None


def varint(frame, at):
    value = shift = 0
    while at < len(frame) and shift < 64:
        byte = frame[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise CallError(INVALID_ARGUMENT, "the request is not a HelloRequest")


def encoded(greeting):
    """A HelloReply in a gRPC frame."""
    text = greeting.encode()
    message, length = bytearray([1 << 3 | 2]), len(text)
    while length >= 0x80:
        message.append(length & 0x7F | 0x80)
        length >>= 7
    message.append(length)
    message += text
    return b"\0" + len(message).to_bytes(4, "big") + bytes(message)


def percent_encoded(text):
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x25 else f"%{b:02X}" for b in text.encode())
