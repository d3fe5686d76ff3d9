#!/usr/bin/env python3
"""`longhaul generate` and `longhaul eval` as a user starts them, also under mpirun.

usage: generate_test.py PROGRAM MPIRUN...
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

PROGRAM = sys.argv[1]
MPIRUN = sys.argv[2:]
SENTENCE = "Ein Bär fährt für zehn € über die Straße, während es schneit. "
CONFIG = """
model { vocabulary: 256 layers: 2 width: 48 heads: 4 kv_heads: 2 head_dim: 12 mlp_width: 96
        norm_eps: 1e-5 rope_theta: 10000 }
data { path: "text" sequence_length: 200 validation_fraction: 0.1 }
train { steps: 120 batch_tokens: 400 warmup_steps: 10 learning_rate: 5e-3 run_directory: "run"
        check_attention: false }
"""


class Model(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        (cls.folder / "text.txt").write_text(SENTENCE * 60)
        (cls.folder / "prompt.txt").write_text(SENTENCE[:20])
        (cls.folder / "c.txtpb").write_text(CONFIG)
        cls.environment = {name: value for name, value in os.environ.items()
                           if not name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
        cls.environment["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        for command in (["data", "prepare", "--output", "text", "text.txt"],
                        ["train", "--config", "c.txtpb"]):
            subprocess.run([PROGRAM, *command], cwd=cls.folder, check=True,
                           stdout=subprocess.DEVNULL)

    def start(self, *arguments, ranks=0, status=0, stdin=""):
        launch = [*MPIRUN, "-n", str(ranks)] if ranks else []
        done = subprocess.run([*launch, PROGRAM, *arguments], cwd=self.folder, input=stdin.encode(),
                              env=self.environment, capture_output=True, timeout=120)
        self.assertEqual(done.returncode, status, done.stderr.decode())
        return done.stdout.decode(), done.stderr.decode()

    def refused(self, status, what, *arguments):
        out, err = self.start(*arguments, status=status)
        self.assertEqual(out, "")
        self.assertEqual(err.count("\n"), 1, err)
        self.assertIn(what, err)

    def test_a_memorised_text_goes_on(self):
        expected = (SENTENCE * 4).encode()[len(SENTENCE[:20].encode()):][:150]
        for start, ranks in ((["--prompt", SENTENCE[:20]], 0),
                             (["--prompt-file", "prompt.txt", "--ranks", "3"], 0),
                             (["--prompt-file", "prompt.txt"], 2)):
            out, err = self.start("generate", "run", "--tokens", "150", *start, ranks=ranks)
            self.assertEqual(out, expected.decode() + "\n")
            self.assertIn("prefill 23 tokens", err)
            self.assertIn("decode 149", err)
        out, _ = self.start("generate", "run", "--tokens", "150", "--prompt-file", "-",
                            stdin=SENTENCE[:20])
        self.assertEqual(out, expected.decode() + "\n")

    def test_tokens_by_number(self):
        prompt, expected = SENTENCE.encode()[:10], (SENTENCE * 2).encode()[10:60]
        out, _ = self.start("generate", "run", "--ids", "--tokens", "50", "--prompt",
                            " ".join(str(byte) for byte in prompt))
        self.assertEqual([int(token) for token in out.split()], list(expected))

    def test_the_deadline_is_what_is_asked_for(self):
        # Rank 0 waits for a prompt that does not come, and the other for rank 0.
        reader, writer = os.pipe()
        try:
            done = subprocess.run(
                [*MPIRUN, "-n", "2", PROGRAM, "generate", "run", "--prompt-file", "-", "--set",
                 "parallel.timeout_seconds=1"], cwd=self.folder, stdin=reader,
                env=self.environment, capture_output=True, timeout=120)
        finally:
            os.close(reader)
            os.close(writer)
        self.assertEqual(done.returncode, 6, done.stderr.decode())
        self.assertIn("rank 1 waited 1 s", done.stderr.decode())

    def test_tokens_for_control_are_no_text(self):
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = iter(range(256, 512))
        alphabet = [chr(byte if byte in plain else next(others)) for byte in range(256)]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                 "use_regex": False}
        (self.folder / "control.json").write_text(json.dumps({
            "version": "1.0", "normalizer": None, "pre_tokenizer": level, "post_processor": None,
            "decoder": level, "added_tokens": [
                {"id": ord(letter), "content": letter, "special": special, "single_word": False,
                 "lstrip": False, "rstrip": False, "normalized": False}
                for letter, special in (("w", True), ("z", False))],
            "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(alphabet)},
                      "merges": []}}))
        expected = (SENTENCE * 2).encode()[10:80]
        command = ["generate", "run", "--tokens", "70", "--tokenizer", "control.json"]
        out, _ = self.start(*command, "--prompt", SENTENCE.encode()[:10].decode())
        self.assertIn("w", expected.decode())
        self.assertEqual(out, expected.decode().replace("w", "") + "\n")
        out, _ = self.start(*command, "--ids", "--prompt",
                            " ".join(str(byte) for byte in SENTENCE.encode()[:10]))
        self.assertEqual([int(token) for token in out.split()], list(expected))

    def test_a_longer_text_than_in_training_is_remarked(self):
        _, err = self.start("generate", "run", "--tokens", "190", "--prompt", SENTENCE[:20])
        self.assertIn("the text has 213 tokens; the model was trained on 200 at a time", err)

    def test_bad_input_is_one_sentence(self):
        model = ["generate", "run"]
        self.refused(2, "no prompt", *model)
        self.refused(2, "leave out one", *model, "--prompt", "a", "--prompt-file", "prompt.txt")
        self.refused(2, "the prompt is empty", *model, "--prompt", "")
        self.refused(2, "--tokens 0 is too small", *model, "--prompt", "a", "--tokens", "0")
        self.refused(2, "more than 2^40", *model, "--prompt", "a", "--tokens", str(1 << 60))
        self.refused(5, "a shorter text", *model, "--prompt", "a", "--tokens", str(1 << 39))
        self.refused(2, "--temperature -1", *model, "--prompt", "a", "--temperature", "-1")
        self.refused(2, "--top-p 2", *model, "--prompt", "a", "--top-p", "2")
        self.refused(2, "`x` is no token", *model, "--prompt", "1 x", "--ids")
        self.refused(3, "token 256 of the prompt", *model, "--prompt", "256", "--ids")
        self.refused(3, "cannot read the prompt file", *model, "--prompt-file", "none.txt")
        self.refused(4, "there is no none", "generate", "none", "--prompt", "a")
        self.refused(4, "no complete checkpoint", "generate", ".", "--prompt", "a")
        self.refused(2, "share one text", *model, "--prompt", "a", "--set", "parallel.data=2")
        self.refused(4, "model.width", *model, "--prompt", "a", "--set", "model.width=96")
        self.refused(3, "", *model, "--prompt", "a", "--tokenizer", "none.json")

    def test_eval(self):
        lines = (self.folder / "run/metrics.jsonl").read_text().splitlines()
        trained = json.loads(lines[-1])
        for ranks in (0, 2):
            out, _ = self.start("eval", "run", "--json", "--svg", "e.svg", ranks=ranks)
            loss = json.loads(out)["loss"]
            self.assertAlmostEqual(loss["loss"] / trained["validation_loss"], 1, places=5)
            self.assertEqual(loss["tokens"], trained["validation_tokens"])
            xml.etree.ElementTree.parse(self.folder / "e.svg")
        # Other lengths, and a corpus of its own: every sample of it.
        out, _ = self.start("eval", "run", "--data", "text", "--length", "77", "--samples", "1000",
                            "--buckets", "5", "--json", "--ranks", "3")
        loss = json.loads(out)["loss"]
        size = len((SENTENCE * 60).encode())
        self.assertEqual(loss["samples"], size // 77)
        self.assertEqual(sum(bucket["tokens"] for bucket in loss["by_position"]), loss["tokens"])
        self.assertEqual([bucket["begin"] for bucket in loss["by_position"]], [0, 16, 31, 47, 62])

    def test_passkeys(self):
        arguments = ["eval", "run", "--no-loss", "--passkey", "--text", "text.txt", "--lengths",
                     "150,180", "--depths", "0,1", "--trials", "2"]
        out, _ = self.start(*arguments, "--json", "--svg", "p.svg")
        cells = json.loads(out)["passkey"]["cells"]
        self.assertEqual([(cell["length"], cell["depth"], cell["trials"]) for cell in cells],
                         [(150, 0, 2), (150, 1, 2), (180, 0, 2), (180, 1, 2)])
        picture = (self.folder / "p.svg").read_text()
        xml.etree.ElementTree.fromstring(picture)
        self.assertEqual(picture.count("<rect"), 1 + 4)
        out, _ = self.start(*arguments)
        self.assertIn("passkeys found:", out)

    def test_bad_input_of_eval(self):
        model = ["eval", "run"]
        self.refused(2, "--samples 0", *model, "--samples", "0")
        self.refused(2, "--length 0", *model, "--length", "0")
        self.refused(3, "fewer than a sample of 5000", *model, "--length", "5000")
        self.refused(3, "none", *model, "--data", "none")
        # Where training saw all of the corpus, no length makes some of it held out.
        self.start("train", "--config", "c.txtpb", "--set", "data.validation_fraction=0.02",
                   "--set", "train.steps=1", "--set", "train.run_directory=all")
        self.refused(3, "held out nothing", "eval", "all", "--length", "30")
        self.refused(2, "--lengths", *model, "--passkey", "--text", "text.txt")
        self.refused(2, "--text FILE", *model, "--passkey", "--lengths", "150")
        self.refused(2, "too few", *model, "--passkey", "--text", "text.txt", "--lengths", "50")
        self.refused(2, "--depths: 2", *model, "--passkey", "--text", "text.txt", "--lengths",
                     "150", "--depths", "2")
        self.refused(2, "{key}", *model, "--passkey", "--text", "text.txt", "--lengths", "150",
                     "--needle", "nothing")
        self.refused(3, "cannot read the text", *model, "--passkey", "--text", "no", "--lengths",
                     "150")
        self.refused(2, "--no-loss", *model, "--no-loss")
        for option, value in (("--data", "text"), ("--samples", "2"), ("--buckets", "2")):
            self.refused(2, f"--no-loss excludes {option}", *model, "--passkey", "--text",
                         "text.txt", "--lengths", "150", "--no-loss", option, value)
        for option, value in (("--text", "text.txt"), ("--lengths", "150"), ("--depths", "0"),
                              ("--trials", "2"), ("--seed", "2"), ("--needle", "{key}"),
                              ("--question", "?")):
            self.refused(2, f"{option} requires --passkey", *model, option, value)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
