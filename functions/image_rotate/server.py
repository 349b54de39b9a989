"""image_rotate: decodes a JPEG picture, rotates it, and encodes it again.

Source: FunctionBench, `cpu-memory/image_processing`; vHive `function-images/image_rotate`, whose
record and replay runs rotate different pictures.
"""

import io
import os
from zlib import crc32

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from vhive_function import BadRequest, at_most, serve

TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
MAX_PIXELS = 16_000_000
HELP = (
    'POST / with {"picture":"record","degrees":90}, or a JPEG picture itself (Content-Type: '
    "image/jpeg, ?degrees=90), replies with the rotated picture's size and the CRC-32 of its pixels"
)
HERE = os.path.dirname(os.path.abspath(__file__))


def rotated(jpeg, degrees):
    """Rotates the picture in `jpeg` counter-clockwise and describes the result."""
    if degrees not in TURNS:
        raise BadRequest("degrees must be 90, 180 or 270")
    try:
        picture = JpegImageFile(jpeg)
        at_most("pixels", picture.width * picture.height, 1, MAX_PIXELS)
        turned = picture.transpose(TURNS[degrees])
    except (OSError, SyntaxError, ValueError) as error:
        raise BadRequest(f"not a JPEG picture: {error}") from None
    out = io.BytesIO()
    turned.save(out, "JPEG")
    pixels = f"{crc32(turned.tobytes()):08x}"
    return {
        "width": turned.width,
        "height": turned.height,
        "pixels_crc32": pixels,
        "jpeg_bytes": len(out.getbuffer()),
    }


def handle(request):
    if request.headers.get("content-type", "").startswith("image/"):
        degrees = request.query.removeprefix("degrees=") or "90"
        if not (degrees.isascii() and degrees.isdigit() and len(degrees) < 5):
            raise BadRequest("the query must be degrees=90, 180 or 270")
        return rotated(io.BytesIO(request.body), int(degrees))
    fields = request.json({"picture": "record", "degrees": 90})
    if fields["picture"] not in ("record", "replay"):
        raise BadRequest("picture must be record or replay")
    with open(f"{HERE}/{fields['picture']}.jpg", "rb") as jpeg:
        return rotated(jpeg, fields["degrees"])


serve("image_rotate", handle, HELP, max_body=8 << 20)
