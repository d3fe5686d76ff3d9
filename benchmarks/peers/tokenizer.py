#!/usr/bin/env python3
"""How fast is `longhaul data prepare` beside the `tokenizers` library, on one core and one text?

usage: tokenizer.py [--longhaul PROGRAM] [--vocabulary N] TEXT

Trains a byte-level tokenizer with Llama 3's pattern on the text, then tokenizes it: by the program,
from file to files, with one thread; and by the library, in memory, by paragraphs (which it is
faster on than on a whole text). Both are pinned to the same core. A table; status 5 without the
library.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--longhaul", default="build/release/longhaul")
    parser.add_argument("--vocabulary", type=int, default=64000)
    args = parser.parse_args()
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        print("the library is not installed: pip install tokenizers", file=sys.stderr)
        return 5
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([str(args.text)], trainers.BpeTrainer(
        vocab_size=args.vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    text = args.text.read_text(encoding="utf-8", errors="ignore")
    size = len(text.encode())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "one.txt").write_text("x")

        def prepare(source, output):
            begin = time.perf_counter()
            subprocess.run([args.longhaul, "data", "prepare", str(source), "--output", str(folder / output),
                            "--tokenizer", str(folder / "tokenizer.json"), "--threads", "1"],
                           check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - begin

        start = prepare(folder / "one.txt", "one")
        ours = min(prepare(args.text, f"out{i}") for i in range(3))
    paragraphs = text.split("\n\n")
    begin = time.perf_counter()
    tokenizer.encode_batch(paragraphs)
    theirs = time.perf_counter() - begin
    print(f"{size / 1e6:.1f} MB of text, vocabulary {tokenizer.get_vocab_size()}, one core")
    print(f"longhaul data prepare, best of 3           {size / ours / 1e6:7.1f} MB/s")
    print(f"  without its start ({start:.2f} s)             {size / (ours - start) / 1e6:7.1f} MB/s")
    print(f"tokenizers, encode_batch of paragraphs     {size / theirs / 1e6:7.1f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
