#!/usr/bin/env python3
"""`longhaul checkpoint import` and `export` as a user starts them, on folders made here.

--sanitized: the program was built with a sanitizer, which takes memory of its own.

usage: huggingface_test.py PROGRAM [--sanitized]
"""
import array
import json
import os
import pathlib
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv[1]
SANITIZED = "--sanitized" in sys.argv[2:]
CONFIG = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=40, hidden_size=16,
              intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6,
              rope_theta=10000.0, tie_word_embeddings=True, hidden_act="silu", eos_token_id=7)


def shapes_of(config):
    width, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or width // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], width],
              "model.norm.weight": [width]}
    for layer in range(config["num_hidden_layers"]):
        parts = {"input_layernorm.weight": [width], "post_attention_layernorm.weight": [width],
                 "self_attn.q_proj.weight": [q, width], "self_attn.k_proj.weight": [kv, width],
                 "self_attn.v_proj.weight": [kv, width], "self_attn.o_proj.weight": [width, q],
                 "mlp.gate_proj.weight": [inner, width], "mlp.up_proj.weight": [inner, width],
                 "mlp.down_proj.weight": [width, inner]}
        if config["model_type"] == "qwen2":
            parts.update({"self_attn.q_proj.bias": [q], "self_attn.k_proj.bias": [kv],
                          "self_attn.v_proj.bias": [kv]})
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in parts.items()})
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [config["vocab_size"], width]
    return shapes


def count(shape):
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def read_folder(folder):
    """name -> (dtype, shape, bytes)"""
    index = folder / "model.safetensors.index.json"
    names = ({"model.safetensors"} if not index.exists() else
             set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for name in names:
        data = (folder / name).read_bytes()
        length, = struct.unpack("<Q", data[:8])
        for tensor, entry in json.loads(data[8:8 + length]).items():
            if tensor == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[tensor] = entry["dtype"], entry["shape"], data[begin:end]
    return tensors


def random_bytes(dtype, elements, seed):
    """Finite values of any sign and size, zeros and denormals among them."""
    rng = random.Random(seed)
    if dtype == "F32":
        return array.array("f", (rng.gauss(0, 1) * 10.0 ** rng.randint(-40, 2)
                                 for _ in range(elements))).tobytes()
    top = 0x7c00 if dtype == "F16" else 0x7f80
    values = (rng.randrange(0, top) | rng.choice((0, 0x8000)) for _ in range(elements))
    return array.array("H", values).tobytes()


def write_model(folder, config, dtype, files=1, **others):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    tensors = {name: (dtype, shape, random_bytes(dtype, count(shape), name))
               for name, shape in shapes_of(config).items()}
    tensors.update(others)
    if files == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return tensors
    weight_map = {}
    for i in range(files):
        name = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = dict(list(tensors.items())[i::files])
        write_safetensors(folder / name, part)
        weight_map.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def floats(dtype, data):
    if dtype == "F32":
        return list(array.array("f", data))
    if dtype == "F16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    bits = array.array("I", (b << 16 for b in array.array("H", data)))
    return list(array.array("f", bits.tobytes()))


class HuggingFace(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def start(self, *arguments, status=0):
        done = subprocess.run([PROGRAM, *(str(a) for a in arguments)], cwd=self.folder,
                              capture_output=True, timeout=120)
        self.assertEqual(done.returncode, status, done.stderr.decode())
        return done.stderr.decode() if status else done.stdout.decode()

    def refused(self, what, *arguments):
        message = self.start(*arguments, status=4)
        self.assertEqual(message.count("\n"), 1, message)
        for part in what:
            self.assertIn(part, message)

    def test_round_trips_keep_every_bit(self):
        for dtype, files, file_bytes in (("BF16", 1, 10**9), ("F32", 3, 2000), ("BF16", 2, 1)):
            with self.subTest(dtype=dtype, files=files):
                name = f"{dtype}-{files}"
                tensors = write_model(self.folder / name, CONFIG, dtype, files)
                self.start("checkpoint", "import", name, "--output", name + "-run")
                self.start("checkpoint", "export", name + "-run", name + "-back",
                           "--file-bytes", file_bytes)
                back = self.folder / (name + "-back")
                self.assertEqual(read_folder(back), tensors)
                self.assertEqual((back / "model.safetensors").exists(), file_bytes == 10**9)
                self.assertEqual(json.loads((back / "config.json").read_text())["eos_token_id"], 7)
                for kept in ("tokenizer.json", "generation_config.json"):
                    self.assertEqual((back / kept).read_bytes(),
                                     (self.folder / name / kept).read_bytes())
                # And once more: the export is as good as the original.
                self.start("checkpoint", "import", name + "-back", "--output", name + "-run2")
                self.start("checkpoint", "export", name + "-run2", name + "-back2")
                self.assertEqual(read_folder(self.folder / (name + "-back2")), tensors)

    def test_bytes_do_not_stand_in_for_a_tokenizer(self):
        write_model(self.folder / "theirs", CONFIG, "F32")
        (self.folder / "theirs/tokenizer.json").unlink()
        self.start("checkpoint", "import", "theirs", "--output", "run")
        message = self.start("generate", "run", "--prompt", "a", status=2)
        for part in ("40 tokens", "--tokenizer", "--ids"):
            self.assertIn(part, message)
        self.start("generate", "run", "--ids", "--prompt", "1 2")

    def test_half_precision_becomes_single(self):
        tensors = write_model(self.folder / "half", CONFIG, "F16")
        self.start("checkpoint", "import", "half", "--output", "run")
        self.start("checkpoint", "export", "run", "back")
        back = read_folder(self.folder / "back")
        self.assertEqual(set(back), set(tensors))
        for name, (dtype, shape, data) in tensors.items():
            self.assertEqual(back[name][:2], ("F32", shape))
            self.assertEqual(floats("F32", back[name][2]), floats("F16", data))

    def test_single_precision_rounds_to_bf16_if_asked(self):
        tensors = write_model(self.folder / "single", CONFIG, "F32")
        self.start("checkpoint", "import", "single", "--output", "run", "--dtype", "bf16")
        self.start("checkpoint", "export", "run", "back", "--dtype", "f32")
        for name, (dtype, _, data) in read_folder(self.folder / "back").items():
            self.assertEqual(dtype, "F32")
            for ours, theirs in zip(floats("F32", data), floats("F32", tensors[name][2])):
                self.assertLessEqual(abs(ours - theirs), abs(theirs) / 256 + 1e-40)
                self.assertEqual(struct.pack("<f", ours)[:2], b"\0\0")

    def test_an_imported_model_trains_on_any_number_of_ranks(self):
        config = dict(CONFIG, vocab_size=256)
        shapes = shapes_of(config)
        rng = random.Random(5)
        small = {name: ("F32", shape, array.array(
            "f", (rng.gauss(0, 0.1) for _ in range(count(shape)))).tobytes())
            for name, shape in shapes.items()}
        write_model(self.folder / "theirs", config, "F32", **small)
        # What interrupted attempts have left is in nobody's way.
        for left in "run.partial", "merged.partial":
            (self.folder / left).mkdir()
            (self.folder / left / "model.safetensors").write_text("half")
        self.start("checkpoint", "import", "theirs", "--output", "run/")
        (self.folder / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 60)
        self.start("data", "prepare", "--output", "text", "text.txt")
        losses = []
        for ranks, settings in ((1, ["train.run_directory=one", "checkpoint.initial=run"]),
                                (2, ["train.run_directory=run"])):
            options = [part for assignment in
                       ["data.path=text", "data.sequence_length=60", "train.steps=3",
                        "train.learning_rate=0.01", *settings] for part in ("--set", assignment)]
            self.start("train", "--config", "run/config.txtpb", "--ranks", ranks, *options)
            run = self.folder / settings[0].partition("=")[2]
            steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            losses.append([step["loss"] for step in steps if "grad_norm" in step])
        self.assertEqual(len(losses[0]), 3)
        for one, two in zip(*losses):
            self.assertLess(abs(one - two), 1e-4 * one)
        self.assertLess(losses[0][2], losses[0][0])
        self.start("checkpoint", "export", "run", "trained")
        self.assertNotEqual(read_folder(self.folder / "trained"), small)

    def test_adapters_are_merged(self):
        config = dict(CONFIG, vocab_size=256)
        tensors = {name: ("F32", shape, array.array("f", [0.01 * (i % 7 - 3) for i in range(
            count(shape))]).tobytes()) for name, shape in shapes_of(config).items()}
        write_model(self.folder / "theirs", config, "F32", **tensors)
        (self.folder / "theirs/generation_config.json").write_text('{"eos_token_id": 10}')
        self.start("checkpoint", "import", "theirs", "--output", "run")
        (self.folder / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 60)
        self.start("data", "prepare", "--output", "text", "text.txt")
        options = [part for assignment in
                   ["data.path=text", "data.sequence_length=60", "train.steps=2",
                    "train.learning_rate=0.05", "train.run_directory=adapted", "lora.rank=2",
                    "lora.alpha=6", "lora.projections=q_proj,down_proj", "checkpoint.initial=run"]
                   for part in ("--set", assignment)]
        # Killed before its first checkpoint, a run starts anew.
        self.start("train", "--config", "run/config.txtpb", *options)
        shutil.rmtree(self.folder / "adapted/checkpoints")
        self.start("train", "--config", "run/config.txtpb", *options)
        self.start("checkpoint", "export", "adapted", "merged")
        # What came with the model goes on with what it becomes.
        self.assertEqual((self.folder / "merged/generation_config.json").read_text(),
                         '{"eos_token_id": 10}')
        self.assertEqual(json.loads((self.folder / "merged/config.json").read_text())["model_type"],
                         config["model_type"])
        self.assertEqual((self.folder / "adapted/huggingface/config.json").read_bytes(),
                         (self.folder / "theirs/config.json").read_bytes())
        self.assertFalse([*self.folder.glob("*.partial")])
        self.assertFalse((self.folder / "run/model.safetensors").exists())
        merged = read_folder(self.folder / "merged")
        self.assertEqual(set(merged), set(tensors))
        shard, = (self.folder / "adapted/checkpoints").glob("step-00000002/shard-*")
        data = shard.read_bytes()
        length, = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + length])

        def stored(name):
            entry, = (value for key, value in header.items() if key.startswith(name + "["))
            begin, end = entry["data_offsets"]
            return floats("F32", data[8 + length + begin:8 + length + end])

        for name, (_, shape, before) in tensors.items():
            values, old = floats("F32", merged[name][2]), floats("F32", before)
            if "q_proj.weight" not in name and "down_proj" not in name:
                self.assertEqual(values, old, name)
                continue
            stem = name.removesuffix(".weight")
            a, b = stored(stem + ".lora_A.weight"), stored(stem + ".lora_B.weight")
            out, inner = shape
            changed = 0
            for i in range(out):
                for j in range(inner):
                    expected = old[i * inner + j] + 6 / 2 * sum(
                        b[2 * i + r] * a[r * inner + j] for r in range(2))
                    changed += expected != old[i * inner + j]
                    self.assertLess(abs(values[i * inner + j] - expected),
                                    1e-6 * abs(expected) + 1e-9)
            self.assertGreater(changed, 0)

    def test_what_a_model_has_and_longhaul_has_not_is_named(self):
        changes = {
            "quantization_config": {"bits": 4}, "num_experts": 8, "mlp_bias": True,
            "model_type": "mixtral", "hidden_act": "gelu", "partial_rotary_factor": 0.5,
            "architectures": ["Qwen2ForSequenceClassification"], "num_key_value_heads": "many",
            "hidden_size": 1e300, "rms_norm_eps": "small",
            "rope_scaling": {"rope_type": "longrope"}, "rope_parameters": 7,
            "tie_word_embeddings": 1, "vocab_size": -1, "num_attention_heads": 0,
            "num_hidden_layers": 1 << 40, "head_dim": 1 << 31, "intermediate_size": 1 << 63,
        }
        for i, (field, value) in enumerate(changes.items()):
            with self.subTest(field):
                write_model(self.folder / str(i), CONFIG, "F32")
                (self.folder / str(i) / "config.json").write_text(
                    json.dumps(dict(CONFIG, **{field: value})))
                self.refused([f"{i}/config.json", field], "checkpoint", "import", i, "--output",
                             "run")
        write_model(self.folder / "w", CONFIG, "F32")
        for field in ("vocab_size", "num_hidden_layers", "model_type"):
            lacking = {name: value for name, value in CONFIG.items() if name != field}
            (self.folder / "w/config.json").write_text(json.dumps(lacking))
            self.refused([field, "missing"], "checkpoint", "import", "w", "--output", "run")
        window = dict(CONFIG, use_sliding_window=True, sliding_window=8, max_window_layers=1)
        (self.folder / "w/config.json").write_text(json.dumps(window))
        self.refused(["max_window_layers", "8"], "checkpoint", "import", "w", "--output", "run")
        mistral = dict(CONFIG, model_type="mistral", attention_bias=True)
        (self.folder / "w/config.json").write_text(json.dumps(mistral))
        self.refused(["attention_bias"], "checkpoint", "import", "w", "--output", "run")
        for field, value in (("attention_factor", 0), ("attention_factor", -1.2), ("mscale", -1),
                             ("mscale_all_dim", -1)):
            yarn = {"rope_type": "yarn", "factor": 4.0, field: value}
            (self.folder / "w/config.json").write_text(
                json.dumps(dict(CONFIG, rope_scaling=yarn)))
            self.refused([f"rope_scaling.{field}", str(value)], "checkpoint", "import", "w",
                         "--output", "run")
        (self.folder / "w/config.json").write_text("{")
        self.refused(["config.json", "JSON"], "checkpoint", "import", "w", "--output", "run")
        self.assertFalse((self.folder / "run").exists())

    def test_weights_that_do_not_fit_are_named(self):
        first = "model.layers.0.mlp.up_proj.weight"
        for name, others, what in (
                ("more", {"model.layers.0.mlp.up_proj.bias": ("F32", [24], b"\0" * 96)},
                 ["up_proj.bias", "no place"]),
                ("shape", {first: ("F32", [16, 24], b"\0" * 4 * 384)}, [first, "[16, 24]"]),
                ("type", {first: ("I8", [24, 16], b"\0" * 384)}, [first, "I8"])):
            with self.subTest(name):
                write_model(self.folder / name, CONFIG, "F32", **others)
                self.refused(what, "checkpoint", "import", name, "--output", name + "-run")
                self.assertFalse((self.folder / (name + "-run")).exists())
        write_model(self.folder / "sharded", CONFIG, "F32", 2)
        index = self.folder / "sharded/model.safetensors.index.json"
        map_ = json.loads(index.read_text())
        for value, what in (("../x", "no file name"), ("other.safetensors", "other.safetensors")):
            changed = dict(map_, weight_map=dict(map_["weight_map"], **{first: value}))
            index.write_text(json.dumps(changed))
            self.refused([what], "checkpoint", "import", "sharded", "--output", "run3")
        (self.folder / "lacks").mkdir()
        (self.folder / "lacks/config.json").write_text(json.dumps(CONFIG))
        self.refused(["lacks", "model.safetensors"], "checkpoint", "import", "lacks", "--output",
                     "run3")
        write_model(self.folder / "whole", CONFIG, "F32")
        self.start("checkpoint", "import", "whole", "--output", "run4")
        self.refused(["run4", "not empty"], "checkpoint", "import", "whole", "--output", "run4")
        self.refused(["whole", "not empty"], "checkpoint", "export", "run4", "whole")

    def test_a_folder_has_its_name_once_it_is_whole(self):
        tensors = write_model(self.folder / "theirs", CONFIG, "F32")

        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

        for arguments, made in ((["import", "theirs", "--output", "run/"], "run"),
                                (["export", "run", "new/back"], "new/back")):
            with self.subTest(arguments[0]):
                made, partial = self.folder / made, self.folder / (made + ".partial")
                stopped = subprocess.run([PROGRAM, "checkpoint", *arguments], cwd=self.folder,
                                         capture_output=True, preexec_fn=small_files)
                self.assertNotEqual(stopped.returncode, 0)
                self.assertFalse(made.exists())
                # Of a program that was killed.
                partial.mkdir(parents=True, exist_ok=True)
                (partial / "model.safetensors").write_bytes(b"half")
                (partial / "other").write_bytes(b"half")
                self.start("checkpoint", *arguments)
                self.assertFalse(partial.exists())
                self.assertFalse((made / "other").exists())
                # An empty folder will do.
                shutil.move(made, self.folder / "elsewhere")
                made.mkdir()
                self.start("checkpoint", *arguments)
                self.assertEqual(sorted(path.name for path in made.iterdir()),
                                 sorted(path.name for path in
                                        (self.folder / "elsewhere").iterdir()))
                shutil.rmtree(self.folder / "elsewhere")
        self.assertEqual(read_folder(self.folder / "new/back"), tensors)
        # What is read is not removed, and what cannot be replaced is known before the work.
        shutil.move(self.folder / "theirs", self.folder / "run2.partial")
        self.refused(["run2.partial", "another name"], "checkpoint", "import", "run2.partial",
                     "--output", "run2")
        self.assertTrue((self.folder / "run2.partial/config.json").exists())
        (self.folder / "empty").mkdir()
        (self.folder / "link").symlink_to("empty")
        for folder in ("link", ""):
            self.refused(["cannot be replaced"], "checkpoint", "export", "run", folder)

    @unittest.skipIf(SANITIZED, "sanitizers take memory of their own")
    def test_memory_does_not_grow_with_the_model(self):
        config = dict(CONFIG, vocab_size=65536, hidden_size=1024, intermediate_size=2048,
                      tie_word_embeddings=False)
        folder = self.folder / "large"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        header, at = {}, 0
        for name, shape in shapes_of(config).items():
            header[name] = {"dtype": "F32", "shape": shape,
                            "data_offsets": [at, at + 4 * count(shape)]}
            at += 4 * count(shape)
        text = json.dumps(header).encode()
        with open(folder / "model.safetensors", "wb") as file:  # zeros that take no disk
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
        self.assertGreater(at, 550e6)
        for arguments in (["import", "large", "--output", "run", "--dtype", "bf16"],
                          ["export", "run", "back"]):
            child = subprocess.Popen([PROGRAM, "checkpoint", *arguments], cwd=self.folder,
                                     stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            self.assertEqual(child.returncode, 0)
            print(f"{arguments[0]} of {at / 1e6:.0f} MB: peak {usage.ru_maxrss / 1e3:.0f} MB")
            self.assertLess(usage.ru_maxrss * 1024, 256 << 20)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
