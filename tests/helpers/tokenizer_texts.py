"""Varied texts that the tokenizers are compared on."""

from __future__ import annotations

import functools
import json
import random

from tests.conftest import shared

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>", "<eod>", "<pad>", "<s>"]

FRAGMENTS = [
    *"的一是不了人我在有他，。！？；：、“”‘’…—《》（）「」·～￥％１２３ＡＢ〇㈠①㎡℃←★♪",
    *"aZ09.,!?;:'\"-_/\\@#$%^&*()[]{}<>|~`=+ \t\n\r\u3000\u00a0\u200b\u200d\ufeff\u2028\u00ad\x00\x1c\x85\ufffd",
    *"éÀñüßøĄžİıŁЯжΩβאبअกあがガーｱ한ᄒ々ㄅ𠀀𠮷𪚥豈⿰👍😂",
    "e\u0301",
    "o\u0308\u0323",
    "👨‍👩‍👧",
    "🇨🇳",
    "👍🏽",
    "今天天气不错",
    "念奴娇·赤壁怀古",
    "大江东去，浪淘尽",
    "Hello",
    "world",
    "GPT-2",
    "iPhone15",
    "I'm we'll they've he'd it's don't",
    "  ",
    "    ",
    "\n\n",
    "3.14",
    "100,000",
    "2021年11月15日",
    "https://example.com/a?b=c&d=%E4%BD%A0",
    "user@example.com",
    "def f(x):\n\treturn x ** 2",
    "unaffable",
    "Donaudampfschifffahrtsgesellschaft",
    "한국어",
    "ありがとう",
    "カタカナ",
    "привет мир",
    "مرحبا",
    "##ing",
    "ha" * 40,
    "z" * 101,
    "哈" * 120,
]


@functools.cache
def varied_texts() -> list[str]:
    """2,900 different texts, half a page at most: poems, verse in English, and fragments of all kinds in random order.

    No special piece of any vocabulary is in them.
    """
    poems = [json.loads(line) for line in shared("corpora/song_ci.jsonl").read_text("utf-8").splitlines()[:3000:10]]
    plays = shared("corpora/tinyshakespeare.txt").read_text("utf-8").split("\n\n")[:2000:5]
    chance = random.Random(0)
    mixed = ["".join(chance.choices(FRAGMENTS, k=chance.randint(1, 12))) for _ in range(2200)]
    texts = {"": None, **dict.fromkeys(f"{p['tune']}\n" + "\n".join(p["lines"]) for p in poems)}
    texts |= dict.fromkeys([*plays, *mixed])
    return [text for text in texts if not any(special in text for special in SPECIAL)]
