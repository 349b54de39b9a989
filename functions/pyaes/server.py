"""pyaes: encrypts and decrypts a message with AES-128 in counter mode, in pure Python.

Source: FunctionBench, `cpu-memory/pyaes`.
"""

import os

from pyaes import AESModeOfOperationCTR

import vhive_json
from vhive_function import at_most, serve

KEY = bytes.fromhex("a1f6258c877d5fcd8964484538bfc92c")
MAX_MESSAGE = 64 << 10  # bytes
MAX_ITERATIONS = 10_000
HELP = 'POST / with {"message":"text","iterations":1} replies with the ciphertext in hexadecimal'
HERE = os.path.dirname(os.path.abspath(__file__))


def encrypt(message, iterations):
    """The ciphertext of the last iteration; each one encrypts, decrypts and compares."""
    for _ in range(iterations):
        ciphertext = AESModeOfOperationCTR(KEY).encrypt(message)
        if AESModeOfOperationCTR(KEY).decrypt(ciphertext) != message:
            raise RuntimeError("the decrypted message is not the original")
    return ciphertext


def handle(request):
    fields = request.json({"message": "", "iterations": 1})
    message = fields["message"].encode("utf-8", "surrogatepass")
    at_most("bytes of message", len(message), 1, MAX_MESSAGE)
    iterations = at_most("iterations", fields["iterations"], 1, MAX_ITERATIONS)
    ciphertext = encrypt(message, iterations)
    return {"bytes": len(message), "iterations": iterations, "ciphertext": ciphertext.hex()}


def greet(name):
    """`record` and `replay` encrypt the message of that input, other names themselves."""
    if name not in ("record", "replay"):
        encrypt(name.encode()[:MAX_MESSAGE] or b" ", 1)
        return f"Hello, {name}!"
    with open(f"{HERE}/{name}.json", "rb") as file:
        fields = vhive_json.loads(file.read())
    encrypt(fields["message"].encode(), fields["iterations"])
    return f"Hello, {name}_response!"


if os.environ.get("PRELOAD_HTTP2"):
    import vhive_greeter  # noqa: F401

serve("pyaes", handle, HELP, greet=greet)
