#!/usr/bin/env python3
"""Draws record.jpg and replay.jpg. Needs Pillow; run it only to change the pictures."""

import math
import random

from PIL import Image, ImageDraw, ImageFilter

for name, width, height, seed in (("record", 1200, 800, 1), ("replay", 1024, 920, 2)):
    chance = random.Random(seed)
    phase = [chance.uniform(0, math.tau) for _ in range(6)]
    small = Image.new("RGB", (width // 4, height // 4))
    small.putdata(
        [
            tuple(
                int(128 + 80 * math.sin(x / 37 + phase[c]) * math.cos(y / 29 + phase[c + 3]))
                for c in range(3)
            )
            for y in range(height // 4)
            for x in range(width // 4)
        ]
    )
    picture = small.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(120):
        x, y = chance.randrange(width), chance.randrange(height)
        size = chance.randrange(8, 90)
        colour = tuple(chance.randrange(256) for _ in range(3))
        shape = draw.ellipse if chance.random() < 0.5 else draw.rectangle
        shape((x, y, x + size, y + chance.randrange(8, 90)), fill=colour)
    picture.filter(ImageFilter.GaussianBlur(1)).save(f"{name}.jpg", quality=80)
    print(name, picture.size)
