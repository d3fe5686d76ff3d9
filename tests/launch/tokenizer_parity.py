#!/usr/bin/env python3
"""Compares tokenizers with the reference libraries on multilingual text.

usage: tokenizer_parity.py LONGHAUL [--texts N] [--seed S] [tokenizer.json ...]

Without files, the `tokenizers` library trains small ones of every published style and their tokens
are compared with those of `longhaul data prepare`; so are ranks with the `tiktoken` library, where
that is installed. Exit status 77 (skipped), and a line that says so, without `tokenizers`.
"""
import argparse
import base64
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? We'll see: 12345 + 67.89 = x_1!",
    "def f(x):\n    return {'a': [x ** 2, \"s\"]}  # TODO\r\n\tif x >= 10: pass\n\n\n",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.", "Voix ambiguë d'un cœur qui préfère.",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.", "中文文本测试，标点符号。一二三",
    "日本語のテキスト、カタカナとひらがな。", "한국어 텍스트를 시험합니다.", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص عربي للاختبار ١٢٣", "טקסט בעברית", "हिन्दी में पाठ १२३", "ข้อความภาษาไทย", "Türkçe İstanbul ışık",
    "Tiếng Việt có dấu", "👩‍👩‍👧 🇩🇪 ☃ ∑ ½ Ⅷ"]
FRAGMENTS = ["'s", "'S", "'\u017f", "'LL", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u180e",
             "\u200b", "\u0085", "\u2028", "\uff11", "\u00e9", "e\u0301", "\u1112\u1161\u11ab", "\u0130",
             "\ufb01", "\u2581", "<|endoftext|>", "<|im_start|>", "<s>", "</s>", "<0x0A>", "lstr", "rstr",
             "word", "n\u00e9", "ne\u0301", "//\n", "\u0e33", "\x00", "\x7f", "a", "B", "7"]


def corpus():
    rng = random.Random(0)
    return [" ".join(rng.choice(SENTENCES) for _ in range(8)) for _ in range(300)]


def texts(rng, count):
    result = [""]
    while len(result) < count:
        kind = rng.random()
        if kind < 0.4:
            pieces = [rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 14))]
        elif kind < 0.6:
            pieces = [rng.choice(FRAGMENTS + SENTENCES) for _ in range(rng.randrange(1, 6))]
        elif kind < 0.8:
            sentence = rng.choice(SENTENCES)
            begin = rng.randrange(len(sentence))
            pieces = [sentence[begin:begin + rng.randrange(30)] for _ in range(2)]
        else:
            pieces = []
            while len(pieces) < 20:
                c = chr(rng.choice([rng.randrange(0x20, 0x7f), rng.randrange(0x80, 0x800),
                                    rng.randrange(0x800, 0xd800), rng.randrange(0xe000, 0x20000)]))
                # Unassigned characters get their categories with different versions of Unicode.
                if unicodedata.category(c) != "Cn":
                    pieces.append(c)
        result.append("".join(pieces))
    return result


def train(folder):
    """A file for each style of tokenizer."""
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                            pre_tokenizers as pre, processors, trainers)
    lines = corpus()

    def byte_level(name, pre_tokenizer, normalizer=None, ignore_merges=False, added=()):
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
            vocab_size=1500, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False,
            special_tokens=["<|endoftext|>", "<|im_start|>"]))
        tokenizer.add_tokens(list(added))
        tokenizer.save(str(folder / f"{name}.json"))

    def split(pattern, behavior="isolated", invert=False):
        return pre.Split(Regex(pattern), behavior, invert=invert)

    def then_bytes(*stages):
        return pre.Sequence([*stages, pre.ByteLevel(add_prefix_space=False, use_regex=False)])

    byte_level("gpt2", pre.ByteLevel(add_prefix_space=False))
    byte_level("gpt2-prefix", pre.ByteLevel(add_prefix_space=True))
    byte_level("llama3", then_bytes(split(CL100K)), ignore_merges=True)
    byte_level("qwen2", then_bytes(split(QWEN2)), normalizer=normalizers.NFC(), added=[
        AddedToken("lstr", lstrip=True, normalized=False), AddedToken("rstr", rstrip=True, normalized=True),
        AddedToken("word", single_word=True, normalized=False), AddedToken("n\u00e9", normalized=True)])
    byte_level("o200k", then_bytes(split(O200K)))
    byte_level("removed", then_bytes(split(CL100K, "removed", True)))
    byte_level("digits", pre.Sequence([pre.Digits(individual_digits=True),
                                       pre.ByteLevel(add_prefix_space=False, use_regex=True)]))
    byte_level("deepseek", then_bytes(
        split(r"[\r\n]"), split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        split(r"\s+$"), split(r"[一-龥ࠀ-一가-퟿]+"), pre.Digits(individual_digits=True)))
    byte_level("merged", then_bytes(split(r"[.,;]+", "merged_with_previous"),
                                    split(r"\s", "merged_with_next"), split(r"\p{P}", "contiguous")))

    # SentencePiece's way: characters, and bytes for those that the vocabulary lacks.
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=1200, limit_alphabet=90, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]))
    trained = json.loads(trained.to_str())
    for name, normalizer, pre_tokenizer in [
            ("llama2", normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
            ("mistral", None, pre.Metaspace(prepend_scheme="first", split=False)),
            ("metaspace", None, pre.Metaspace(prepend_scheme="always", split=True))]:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                               decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
        written = json.loads(tokenizer.to_str())
        for field in ("vocab", "merges"):
            written["model"][field] = trained["model"][field]
        written["added_tokens"] = [t for t in trained["added_tokens"] if not t["content"].startswith("<0x")]
        (folder / f"{name}.json").write_text(json.dumps(written))
    return sorted(folder.glob("*.json"))


def prepared(longhaul, folder, options, rows):
    """The tokens of each text that is not empty."""
    source, prefix = folder / "texts.jsonl", folder / "corpus"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    subprocess.run([longhaul, "data", "prepare", str(source), "--output", str(prefix), "--bare", *options],
                   check=True, stdout=subprocess.DEVNULL)
    index = pathlib.Path(f"{prefix}.idx").read_bytes()
    wide = index[17] == 4
    (sequences,) = struct.unpack_from("<Q", index, 18)
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    data = pathlib.Path(f"{prefix}.bin").read_bytes()
    tokens = struct.unpack(f"<{sum(lengths)}{'i' if wide else 'H'}", data)
    result, at = [], 0
    for length in lengths:
        result.append(list(tokens[at:at + length]))
        at += length
    return result


def compare(name, rows, got, want):
    rows = [row for row in rows if row]
    differing = [(row, g, w) for row, g, w in zip(rows, got, want, strict=True) if g != w]
    for row, g, w in differing[:3]:
        print(f"  {row!r}\n    longhaul  {g}\n    reference {w}")
    print(f"{name:16} {len(rows)} texts, {sum(map(len, want))} tokens, {len(differing)} texts differ")
    return not differing


def compare_tiktoken(longhaul, folder, file, rows):
    """The byte-level vocabulary of `file` as ranks."""
    try:
        import tiktoken
    except ImportError:
        print("tiktoken         skipped: the library is not installed")
        return True
    model = json.loads(file.read_text())["model"]
    names, other = {}, 0x100
    for byte in range(256):
        printable = 0x21 <= byte <= 0x7e or (byte >= 0xa1 and byte != 0xad)
        names[chr(byte if printable else other)] = byte
        other += 0 if printable else 1
    special = ("<|endoftext|>", "<|im_start|>")
    ranks = sorted((rank, bytes(names[c] for c in token)) for token, rank in model["vocab"].items()
                   if token not in special)
    ranks = {token: rank for rank, (_, token) in enumerate(ranks)}
    path = folder / "ranks.tiktoken"
    path.write_text("".join(f"{base64.b64encode(t).decode()} {r}\n" for t, r in ranks.items()))
    good = True
    for name, pattern, end in [("cl100k", CL100K, 100257), ("o200k", O200K, 199999)]:
        reference = tiktoken.Encoding(name=name, pat_str=pattern, mergeable_ranks=ranks,
                                      special_tokens={"<|endoftext|>": end})
        want = [reference.encode(row, allowed_special="all") for row in rows if row]
        got = prepared(longhaul, folder, ["--tokenizer", str(path), "--pattern", name], rows)
        good &= compare(f"tiktoken {name}", rows, got, want)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("longhaul")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        from tokenizers import Tokenizer
    except ImportError:
        print("skipped: the Python library `tokenizers` is not installed (pip install tokenizers)")
        return 77
    rows = texts(random.Random(args.seed), args.texts)
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = args.files or train(folder)
        for file in files:
            reference = Tokenizer.from_file(str(file))
            want = [reference.encode(row, add_special_tokens=False).ids for row in rows if row]
            got = prepared(args.longhaul, folder, ["--tokenizer", str(file)], rows)
            good &= compare(file.stem, rows, got, want)
        if not args.files:
            good &= compare_tiktoken(args.longhaul, folder, folder / "llama3.json", rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
