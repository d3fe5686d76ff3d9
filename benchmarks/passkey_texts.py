#!/usr/bin/env python3
"""Texts that a small model learns to look something up in, as rows {"text": ...} of JSONL.

usage: passkey_texts.py FILE SHORTEST LONGEST TOKENS REPEATS

TOKENS bytes of texts, each of LONGEST bytes or, half of them, of SHORTEST to LONGEST. A text says a
number of five digits among sentences that say nothing, and asks for it once or more. Or, a share
REPEATS of them, it says some random characters over and over: what comes next can be learned only by
finding where they stood before. The same arguments make the same texts.
"""
import json
import random
import string
import sys

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
BYTES_A_QUESTION = 100  # and more


def filler(source, length):
    begin = source.randrange(len(FILLER))
    return (FILLER * (length // len(FILLER) + 2))[begin:begin + length]


def passkey_text(source, length):
    key = source.randrange(10000, 100000)
    needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    question = f"\nWhat is the pass key? The pass key is {key}.\n"
    questions = source.randrange(1, max(2, length // BYTES_A_QUESTION + 1))
    rest = max(0, length - len(needle) - questions * len(question))
    words = filler(source, rest)
    asked = sorted(source.randrange(rest + 1) for _ in range(questions))
    asked[-1] = rest
    text, last = "", 0
    for at, said in [(source.randrange(asked[0] + 1), needle)] + [(at, question) for at in asked]:
        text += words[last:at] + said
        last = at
    return text[:length]


def repeated_text(source, length):
    characters = string.digits + string.ascii_lowercase + " "
    unit = "".join(source.choices(characters, k=source.randrange(5, max(25, length // 3))))
    return (unit * (length // len(unit) + 1))[:length]


def main():
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    path, shortest, longest, tokens = sys.argv[1], *map(int, sys.argv[2:5])
    repeats = float(sys.argv[5])
    source = random.Random(" ".join(sys.argv[2:]))
    with open(path, "w", encoding="ascii") as out:
        while tokens > 0:
            length = longest if source.random() < 0.5 else source.randint(shortest, longest)
            make = repeated_text if source.random() < repeats else passkey_text
            # A text's end takes a token, too.
            out.write(json.dumps({"text": make(source, length - 1)}) + "\n")
            tokens -= length


if __name__ == "__main__":
    main()
