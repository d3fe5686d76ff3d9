#!/usr/bin/env python3
"""Writes what fuzzing starts from: small valid files, a folder a target.

usage: corpus.py DIRECTORY
"""
import json
import pathlib
import struct
import sys

SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True, hidden_act="silu")
CONFIGS = [
    dict(SIZES, model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=True,
         rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                           high_freq_factor=4.0, original_max_position_embeddings=16)),
    dict(SIZES, model_type="mistral", sliding_window=8, head_dim=8),
    dict(SIZES, model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0,
         rope_scaling=dict(type="yarn", factor=4.0, beta_fast=32, beta_slow=1, mscale=1.0,
                           mscale_all_dim=0.5, attention_factor=1.2, truncate=False)),
    dict(SIZES, model_type="qwen3", layer_types=["full_attention"] * 2,
         rope_parameters=dict(rope_type="dynamic", rope_theta=1e6, factor=2.0)),
]
HEADERS = [
    {},
    {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
     "b.c": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}},
    {"__metadata__": {"format": "pt"}, "w": {"dtype": "F8_E4M3", "shape": [0, 7],
                                             "data_offsets": [0, 0]}},
]


def byte_alphabet():
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + i for i in range(256 - len(plain)))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def vocabulary(tokens):
    return {token: i for i, token in enumerate(tokens)}


BYTES = vocabulary([*byte_alphabet(), "ab", "\u0120a"])
PIECES = vocabulary(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "\u2581", "ab",
                     "\u2581ab"])
SPLIT = {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+"},
         "behavior": "Isolated", "invert": False}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TOKENIZERS = [
    # As of GPT-2, and of Llama 3 and Qwen.
    {"version": "1.0", "normalizer": {"type": "NFC"},
     "added_tokens": [{"id": 258, "content": "<s>", "special": True, "single_word": False,
                       "lstrip": False, "rstrip": True, "normalized": False}],
     "pre_tokenizer": dict(LEVEL, use_regex=True), "post_processor": None, "decoder": LEVEL,
     "model": {"type": "BPE", "vocab": BYTES, "merges": ["a b", "\u0120 a"]}},
    {"version": "1.0", "normalizer": None, "added_tokens": [],
     "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, LEVEL]},
     "post_processor": None, "decoder": LEVEL,
     "model": {"type": "BPE", "vocab": BYTES, "merges": [["a", "b"]], "ignore_merges": True}},
    # As of Llama 2, and of newer files of its kind.
    {"version": "1.0", "added_tokens": [], "pre_tokenizer": None, "post_processor": None,
     "normalizer": {"type": "Sequence", "normalizers": [
         {"type": "Prepend", "prepend": "\u2581"},
         {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
     "decoder": {"type": "Sequence", "decoders": [
         {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
         {"type": "ByteFallback"}, {"type": "Fuse"},
         {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
     "model": {"type": "BPE", "vocab": PIECES, "merges": ["a b", "\u2581 ab"], "unk_token": "<unk>",
               "fuse_unk": True, "byte_fallback": True}},
    {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
     "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                       "split": False},
     "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                 "split": False},
     "model": {"type": "BPE", "vocab": PIECES, "merges": ["a b", "\u2581 ab"], "unk_token": "<unk>",
               "byte_fallback": True}},
]


def main():
    def write(target, name, data):
        folder = pathlib.Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    for i, config in enumerate(CONFIGS):
        write("huggingface_config_fuzz", f"config{i}.json", json.dumps(config).encode())
    for i, header in enumerate(HEADERS):
        data = max((entry["data_offsets"][1] for entry in header.values()
                    if "data_offsets" in entry), default=0)
        write("safetensors_header_fuzz", f"header{i}",
              struct.pack("<H", data) + json.dumps(header).encode())
    write("safetensors_index_fuzz", "index.json", json.dumps(
        {"metadata": {"total_size": 8}, "weight_map": {"a": "x.safetensors", "b": "y"}}).encode())
    for i, tokenizer in enumerate(TOKENIZERS):
        write("tokenizer_json_fuzz", f"tokenizer{i}.json",
              json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode() +
              b"\0ab <s>a")


main()
