#!/usr/bin/env python3
"""Writes record.json and replay.json: orders of a made-up shop. Run it only to change them."""

import json
import random

WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty kiosk lunar maple north".split()

for name, seed, count in (("record", 1, 520), ("replay", 2, 430)):
    chance = random.Random(seed)
    orders = [
        {
            "id": chance.randrange(10**9),
            "customer": " ".join(chance.choices(WORDS, k=3)).title(),
            "paid": chance.random() < 0.8,
            "note": None if chance.random() < 0.5 else "Grüße — " + " ".join(chance.choices(WORDS, k=6)),
            "position": {
                "latitude": round(chance.uniform(-90, 90), 5),
                "longitude": round(chance.uniform(-180, 180), 5),
            },
            "items": [
                {"name": chance.choice(WORDS), "count": chance.randrange(1, 9), "price": chance.randrange(100, 9999) / 100}
                for _ in range(chance.randrange(1, 4))
            ],
        }
        for _ in range(count)
    ]
    with open(f"{name}.json", "w", encoding="utf-8") as file:
        for start, order in enumerate(orders):
            file.write("[\n" if start == 0 else ",\n")
            json.dump(order, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n]\n")
