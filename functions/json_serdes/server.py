"""json_serdes: reads a JSON document and writes it again, indented.

Source: FunctionBench, `cpu-memory/json_dumps_loads`.
"""

import json
from zlib import crc32

from vhive_function import BadRequest, serve

HELP = "POST / with a JSON document replies with the length and CRC-32 of its indented form"


def no_constant(name):
    raise ValueError(f"{name} is not JSON")


def handle(request):
    try:
        document = json.loads(request.body, parse_constant=no_constant)
        text = json.dumps(document, indent=4).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not a JSON document: {error}") from None
    return {"bytes_in": len(request.body), "bytes_out": len(text), "crc32": f"{crc32(text):08x}"}


serve("json_serdes", handle, HELP, max_body=8 << 20)
