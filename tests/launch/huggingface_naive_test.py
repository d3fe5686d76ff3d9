#!/usr/bin/env python3
"""Imported models against a forward pass written out here, from the definitions of their papers.

Makes Hugging Face folders of every family and kind of RoPE, imports them, and compares the loss of
random tokens with that of the forward pass below, and the gradients with its differences. Needs
nothing but Python; huggingface_parity.py compares with transformers where that is installed.

usage: huggingface_naive_test.py PROGRAM IMPORTED_GRADIENTS
"""
import array
import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM, GRADIENTS = sys.argv[1:3]
LENGTH = 21
SIZES = dict(vocab_size=23, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8,
             rms_norm_eps=1e-5, rope_theta=100.0, tie_word_embeddings=False, hidden_act="silu")
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=2.5,
            beta_slow=0.5)
CASES = {
    "llama": dict(model_type="llama"),
    "llama_tied_with_biases": dict(model_type="llama", tie_word_embeddings=True,
                                   attention_bias=True),
    "llama_wide_heads": dict(model_type="llama", head_dim=12, num_key_value_heads=1),
    "llama_linear": dict(model_type="llama", rope_scaling=dict(type="linear", factor=2.5)),
    "llama_dynamic": dict(model_type="llama", rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "llama_llama3": dict(model_type="llama", head_dim=16, rope_theta=500.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64)),
    "llama_yarn_mscale": dict(model_type="llama", head_dim=16, rope_scaling=dict(
        YARN, mscale=0.7, mscale_all_dim=1.3, truncate=False)),
    "mistral": dict(model_type="mistral", sliding_window=5),
    "mistral_without_window": dict(model_type="mistral", sliding_window=None),
    "qwen2": dict(model_type="qwen2", sliding_window=4, use_sliding_window=False),
    "qwen2_window": dict(model_type="qwen2", sliding_window=4, use_sliding_window=True,
                         max_window_layers=0),
    "qwen2_yarn": dict(model_type="qwen2", head_dim=16, rope_scaling=dict(YARN)),
    "qwen2_yarn_attention_factor": dict(model_type="qwen2", head_dim=16, rope_scaling=dict(
        YARN, attention_factor=1.4)),
    "qwen3": dict(model_type="qwen3", head_dim=8, tie_word_embeddings=True),
    "qwen3_with_biases": dict(model_type="qwen3", head_dim=6, attention_bias=True,
                              rope_theta=1e4),
}


def head_dim_of(config):
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def shapes_of(config):
    width, inner, dim = config["hidden_size"], config["intermediate_size"], head_dim_of(config)
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], width],
              "model.norm.weight": [width]}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [config["vocab_size"], width]
    for layer in range(config["num_hidden_layers"]):
        parts = {"input_layernorm.weight": [width], "post_attention_layernorm.weight": [width],
                 "mlp.gate_proj.weight": [inner, width], "mlp.up_proj.weight": [inner, width],
                 "mlp.down_proj.weight": [width, inner]}
        biased = config.get("attention_bias", False)
        for name, out, inputs in (("q", q, width), ("k", kv, width), ("v", kv, width),
                                  ("o", width, q)):
            parts[f"self_attn.{name}_proj.weight"] = [out, inputs]
            if biased or (config["model_type"] == "qwen2" and name != "o"):
                parts[f"self_attn.{name}_proj.bias"] = [out]
        if config["model_type"] == "qwen3":
            parts["self_attn.q_norm.weight"] = parts["self_attn.k_norm.weight"] = [dim]
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in parts.items()})
    return shapes


def random_values(config, seed):
    """What f32 holds exactly; norms around 1, the rest around 0."""
    rng = random.Random(seed)
    values = {}
    for name, shape in shapes_of(config).items():
        middle = 1.0 if "norm" in name else 0.0
        values[name] = list(array.array("f", (rng.gauss(middle, 0.3)
                                              for _ in range(math.prod(shape)))))
    return values


def write_folder(folder, config, values):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, shape in shapes_of(config).items():
        header[name] = dict(dtype="F32", shape=shape,
                            data_offsets=[at, at + 4 * math.prod(shape)])
        at = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            file.write(struct.pack(f"<{len(values[name])}f", *values[name]))


def rotation(config, length):
    """Angle of a position per pair of dimensions, and what cosine and sine are multiplied by."""
    dim, theta = head_dim_of(config), config["rope_theta"]
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor, limit = scaling.get("factor"), config["max_position_embeddings"]
    pairs = range(dim // 2)
    if kind == "dynamic" and length > limit:  # the base grows with the sample
        theta *= (factor * length / limit - (factor - 1)) ** (dim / (dim - 2))
    angles = [theta ** (-2 * i / dim) for i in pairs]
    if kind == "linear":
        return [angle / factor for angle in angles], 1.0
    if kind == "llama3":  # slow ones are stretched, fast ones kept, those between interpolated
        turns = [scaling["original_max_position_embeddings"] * a / (2 * math.pi) for a in angles]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = [min(1.0, max(0.0, (turn - low) / (high - low))) for turn in turns]
        return [a * (share + (1 - share) / factor) for a, share in zip(angles, kept)], 1.0
    if kind == "yarn":  # arXiv 2309.00071, sections 3.2 to 3.4; the ramp is over pairs
        def pair_with(turns):
            span = scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)
            return dim * math.log(span) / (2 * math.log(theta))
        low, high = pair_with(scaling["beta_fast"]), pair_with(scaling["beta_slow"])
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        stretched = [min(1.0, max(0.0, (i - low) / (high - low))) for i in pairs]
        if "attention_factor" in scaling:
            magnitude = scaling["attention_factor"]
        else:
            def grown(weight):
                return 0.1 * weight * math.log(factor) + 1.0
            magnitude = (grown(scaling["mscale"]) / grown(scaling["mscale_all_dim"])
                         if "mscale" in scaling else grown(1.0))
        return [a * (1 - s + s / factor) for a, s in zip(angles, stretched)], magnitude
    return angles, 1.0


def window_of(config):
    if config["model_type"] == "mistral" or config.get("use_sliding_window", False):
        return config.get("sliding_window")
    return None


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def normed(x, weight, eps):
    scale = 1 / math.sqrt(dot(x, x) / len(x) + eps)
    return [scale * value * w for value, w in zip(x, weight)]


class Forward:
    """Of one sample, row by row."""

    def __init__(self, config, values, length):
        self.config, self.values = config, values
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim, self.eps = head_dim_of(config), config["rms_norm_eps"]
        self.angles, self.magnitude = rotation(config, length)
        self.window = window_of(config)

    def linear(self, name, x):
        weight, bias = self.values[name + ".weight"], self.values.get(name + ".bias")
        rows = len(weight) // len(x)
        y = [dot(weight[row * len(x):(row + 1) * len(x)], x) for row in range(rows)]
        return y if bias is None else [a + b for a, b in zip(y, bias)]

    def rotated(self, x, position):
        half = self.dim // 2
        out = [0.0] * self.dim
        for i, angle in enumerate(self.angles):
            c = math.cos(position * angle) * self.magnitude
            s = math.sin(position * angle) * self.magnitude
            out[i] = x[i] * c - x[i + half] * s
            out[i + half] = x[i + half] * c + x[i] * s
        return out

    def head_rows(self, layer, name, x, position):
        """q or k of one token, a list per head."""
        y = self.linear(f"{layer}self_attn.{name}_proj", x)
        heads = [y[i:i + self.dim] for i in range(0, len(y), self.dim)]
        norm = self.values.get(f"{layer}self_attn.{name}_norm.weight")
        if norm is not None:
            heads = [normed(head, norm, self.eps) for head in heads]
        return [self.rotated(head, position) for head in heads]

    def attention(self, layer, rows):
        q = [self.head_rows(layer, "q", x, i) for i, x in enumerate(rows)]
        k = [self.head_rows(layer, "k", x, i) for i, x in enumerate(rows)]
        v = [self.linear(layer + "self_attn.v_proj", x) for x in rows]
        out = []
        for i in range(len(rows)):
            first = 0 if self.window is None else max(0, i - self.window + 1)
            mixed = []
            for head in range(self.heads):
                kv = head * self.kv_heads // self.heads
                scores = [dot(q[i][head], k[j][kv]) / math.sqrt(self.dim)
                          for j in range(first, i + 1)]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                total = sum(weights)
                for d in range(kv * self.dim, (kv + 1) * self.dim):
                    mixed.append(sum(w * v[first + j][d] for j, w in enumerate(weights)) / total)
            out.append(self.linear(layer + "self_attn.o_proj", mixed))
        return out

    def mlp(self, layer, x):
        gate, up = (self.linear(f"{layer}mlp.{name}_proj", x) for name in ("gate", "up"))
        return self.linear(layer + "mlp.down_proj",
                           [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)])

    def loss(self, tokens):
        """Mean over the tokens that have a next one."""
        table, width = self.values["model.embed_tokens.weight"], self.config["hidden_size"]
        rows = [table[token * width:(token + 1) * width] for token in tokens]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            weight = self.values[layer + "input_layernorm.weight"]
            mixed = self.attention(layer, [normed(x, weight, self.eps) for x in rows])
            rows = [[a + b for a, b in zip(x, y)] for x, y in zip(rows, mixed)]
            weight = self.values[layer + "post_attention_layernorm.weight"]
            rows = [[a + b for a, b in zip(x, self.mlp(layer, normed(x, weight, self.eps)))]
                    for x in rows]
        output = "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"
        total = 0.0
        for x, label in zip(rows, tokens[1:]):
            logits = self.linear(output, normed(x, self.values["model.norm.weight"], self.eps))
            top = max(logits)
            total += top + math.log(sum(math.exp(y - top) for y in logits)) - logits[label]
        return total / (len(tokens) - 1)


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(done.stderr.decode())
    return done.stdout.decode()


class Naive(unittest.TestCase):
    def check(self, folder, config):
        values = random_values(config, seed=3)
        write_folder(folder / "theirs", config, values)
        run(PROGRAM, "checkpoint", "import", folder / "theirs", "--output", folder / "run")
        rng = random.Random(4)
        tokens = [rng.randrange(config["vocab_size"]) for _ in range(LENGTH)]
        ours = json.loads(run(GRADIENTS, folder / "run", *tokens))
        loss = Forward(config, values, LENGTH).loss(tokens)
        self.assertLess(abs(ours["loss"] - loss), 1e-9 * loss)

        gradients = ours["gradients"]
        self.assertEqual(set(gradients), set(values))
        # Along a random direction per kind of parameter: an error in one does not hide in others.
        for kind in sorted({name.split(".", 3)[-1] for name in values}):
            chosen = [name for name in values if name.split(".", 3)[-1] == kind]
            direction = {name: [rng.gauss(0, 1) for _ in values[name]] for name in chosen}
            expected, scale = 0.0, 0.0
            step = 1e-5
            for sign in (1, -1):
                moved = dict(values, **{name: [v + sign * step * d for v, d in zip(
                    values[name], direction[name])] for name in chosen})
                expected += sign * Forward(config, moved, LENGTH).loss(tokens) / (2 * step)
            for name in chosen:
                scale += dot(gradients[name], gradients[name])
            got = sum(dot(gradients[name], direction[name]) for name in chosen)
            self.assertLess(abs(got - expected), 1e-5 * math.sqrt(scale) + 1e-9, kind)


def add_case(name, settings):
    def test(self):
        with tempfile.TemporaryDirectory() as folder:
            self.check(pathlib.Path(folder), dict(SIZES, **settings))
    setattr(Naive, "test_" + name, test)


for case, its_settings in CASES.items():
    add_case(case, its_settings)

if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
