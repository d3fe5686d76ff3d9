#!/usr/bin/env python3
"""Training with `device: CUDA`: the losses of CPUs, over threads and processes, and checkpoints that
go from one device to the other.

usage: device_test.py PROGRAM MPIRUN...

Exits with 77, which CTest shows as skipped, where there is no GPU.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv[1]
MPIRUN = sys.argv[2:]
SKIPPED = 77
SLOW = "LONGHAUL_TEST_SLOW_BUILD" in os.environ
STEPS = 6
CONFIG = """
model { vocabulary: 16 layers: 2 width: 32 heads: 4 kv_heads: 2 head_dim: 8 mlp_width: 48
        norm_eps: 1e-5 }
data { path: "copy" sequence_length: 67 validation_fraction: 0.1 }
train { steps: %d batch_tokens: 134 warmup_steps: 2 run_directory: "run" }
checkpoint { every: 3 keep: 0 }
parallel { gpu_transport: HOST }
""" % STEPS


class Device(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        (cls.folder / "c.txtpb").write_text(CONFIG)
        cls.environment = {name: value for name, value in os.environ.items()
                           if not name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
        cls.environment["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        subprocess.run([PROGRAM, "data", "synthesize", "--output", "copy", "--documents", "40",
                        "--tokens", "50", "--vocabulary", "16"], cwd=cls.folder, check=True,
                       stdout=subprocess.DEVNULL)
        # A document is a sample.
        subprocess.run([PROGRAM, "data", "synthesize", "--output", "whole", "--documents", "40",
                        "--tokens", "67", "--vocabulary", "16"], cwd=cls.folder, check=True,
                       stdout=subprocess.DEVNULL)
        cls.on_cpu = {dtype: cls.train(cls, "cpu-" + dtype, 1, "train.dtype=" + dtype)
                      for dtype in ["F64", "F32", "BF16"]}

    def command(self, run, ranks, *settings):
        command = [PROGRAM, "train", "--config", "c.txtpb", "--ranks", str(ranks)]
        for setting in ["train.run_directory=" + run, *settings]:
            command += ["--set", setting]
        return command

    def run_command(self, command):
        return subprocess.run(command, cwd=self.folder, env=self.environment, text=True,
                              capture_output=True, timeout=240)

    def losses(self, run):
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def train(self, run, ranks, *settings):
        result = Device.run_command(self, Device.command(self, run, ranks, *settings))
        assert result.returncode == 0, result.stdout + result.stderr
        return Device.losses(self, run)

    def assert_close(self, losses, dtype, tolerance):
        expected = self.on_cpu[dtype]
        self.assertEqual(sorted(losses), sorted(expected))
        self.assertEqual(max(losses), STEPS)
        for step, loss in losses.items():
            self.assertAlmostEqual(loss, expected[step], delta=tolerance * expected[step])

    def test_losses_are_those_of_the_cpu(self):
        for dtype, tolerance in [("F64", 1e-10), ("F32", 1e-5), ("BF16", 1e-2)]:
            with self.subTest(dtype=dtype):
                losses = self.train("one-" + dtype, 1, "device=CUDA", "train.dtype=" + dtype)
                self.assert_close(losses, dtype, tolerance)

    def test_options_of_attention(self):
        settings = ["train.dtype=F64"] + [
            "model.attention." + option for option in [
                "sliding_window=20", "prefix_length=4", "soft_cap=2", "sinks=true", "dropout=0.2"]]
        expected = self.train("options-cpu", 1, *settings)
        losses = self.train("options-cuda", 2, "device=CUDA", *settings)
        self.assertEqual(sorted(losses), sorted(expected))
        for step, loss in losses.items():
            self.assertAlmostEqual(loss, expected[step], delta=1e-10 * expected[step])
        alibi = ["train.dtype=F64", "model.attention.alibi=true"]
        self.assertAlmostEqual(self.train("alibi-cuda", 2, "device=CUDA", *alibi)[STEPS],
                               self.train("alibi-cpu", 1, *alibi)[STEPS], delta=1e-10)

    def test_ranks_as_threads(self):
        cases = [("ring", "zigzag"), ("double_ring", "striped"), ("usp", "contiguous"),
                 ("ulysses", "zigzag"), ("group_cast", "balanced"), ("all_gather", "zigzag"),
                 ("lightseq", "contiguous"), ("query_ring", "zigzag")]
        for strategy, layout in cases[::2] if SLOW else cases:
            with self.subTest(strategy=strategy):
                losses = self.train("two-" + strategy, 2, "device=CUDA", "train.dtype=F64",
                                    "parallel.strategy=" + strategy, "parallel.layout=" + layout)
                self.assert_close(losses, "F64", 1e-10)

    def test_uneven_ranks_and_recomputation(self):
        losses = self.train("three", 3, "device=CUDA", "train.dtype=F64",
                            "memory.activations=RECOMPUTE", "parallel.layout=striped")
        self.assert_close(losses, "F64", 1e-10)

    def test_linear_attention(self):
        for kind, ranks, settings in [
                ("lightning", 2, ["parallel.layout=zigzag"]),
                ("retention", 3, ["parallel.linear_method=doubling"]),
                ("basic", 2, ["parallel.linear_method=ring", "parallel.layout=contiguous"]),
                ("gla", 2, ["parallel.layout=zigzag"]),
                ("gated_delta", 3, ["parallel.linear_method=pipelined"])]:
            with self.subTest(kind=kind):
                model = ["train.dtype=F64", "train.steps=3", "model.pattern=LN",
                         "model.linear.kind=" + kind]
                expected = self.train("cpu-" + kind, 1, *model)
                losses = self.train("cuda-" + kind, ranks, "device=CUDA", *model, *settings)
                self.assertEqual(sorted(losses), sorted(expected))
                for step, loss in losses.items():
                    self.assertAlmostEqual(loss, expected[step], delta=1e-10 * expected[step])

    def test_graphs_change_no_bit(self):
        whole = ["device=CUDA", "data.path=whole", "train.steps=3"]
        for name, ranks, passes, settings in [
                ("f64", 1, 6, ["train.dtype=F64"]),
                ("bf16", 1, 6, ["train.dtype=BF16", "memory.activations=RECOMPUTE",
                                "memory.loss_tile_rows=20", "model.attention.alibi=true"]),
                ("decay", 1, 6, ["model.pattern=LN", "model.linear.kind=lightning"]),
                ("gates", 1, 6, ["model.pattern=LN", "model.linear.kind=gla"]),
                ("delta", 1, 6, ["model.pattern=LN", "model.linear.kind=gated_delta"]),
                ("replicas", 2, 3, ["parallel.data=2", "model.pattern=LN"])]:
            with self.subTest(name=name):
                expected = self.train("plain-" + name, ranks, *whole, *settings)
                run = "graph-" + name
                result = self.run_command(
                    self.command(run, ranks, "train.cuda_graph=true", *whole, *settings))
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
                self.assertEqual(self.losses(run), expected)
                self.assertIn("replayed %d of %d samples" % (passes - 1, passes), result.stdout)

    def test_graphs_of_changing_documents(self):
        result = self.run_command(self.command("packed", 1, "device=CUDA", "train.dtype=F64",
                                               "train.cuda_graph=true"))
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(self.losses("packed"), self.train("packed-plain", 1, "device=CUDA",
                                                           "train.dtype=F64"))

    def test_graphs_are_refused_where_passes_are_more_than_kernels(self):
        for ranks, setting, part in [(2, "parallel.sequence=2", "parallel.sequence to 1"),
                                     (1, "parallel.strategy=disaggregated", "parallel.strategy"),
                                     (1, "model.attention.dropout=0.1", "dropout"),
                                     (1, "train.check_numerics=true", "check_numerics")]:
            with self.subTest(setting=setting):
                result = self.run_command(self.command("refused", ranks, "device=CUDA",
                                                       "train.cuda_graph=true", setting))
                self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
                self.assertIn("train.cuda_graph", result.stderr)
                self.assertIn(part, result.stderr)

    def test_ranks_as_processes(self):
        command = self.command("mpi", 0, "device=CUDA", "train.dtype=F64")
        command[command.index("--ranks"):command.index("--ranks") + 2] = []
        result = self.run_command([*MPIRUN, "-n", "2", *command])
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assert_close(self.losses("mpi"), "F64", 1e-10)

    def test_reruns_have_the_same_bits(self):
        settings = ["device=CUDA", "train.dtype=BF16"]
        self.assertEqual(self.train("again-1", 2, *settings), self.train("again-2", 2, *settings))

    def test_checkpoints_change_devices(self):
        for first, then in [("CPU", "CUDA"), ("CUDA", "CPU")]:
            with self.subTest(first=first, then=then):
                run = "from-" + first
                self.train(run, 2, "device=" + first, "train.dtype=F64")
                # As if the first job had been killed after the checkpoint of step 3.
                shutil.rmtree(self.folder / run / "checkpoints" / ("step-%08d" % STEPS))
                losses = self.train(run, 1, "device=" + then, "train.dtype=F64")
                self.assert_close(losses, "F64", 1e-10)

    def test_nccl_wants_a_gpu_for_each_rank(self):
        gpus = len(json.loads(self.run_command([PROGRAM, "doctor", "--json"]).stdout)["gpus"])
        result = self.run_command(self.command("too-many", gpus + 1, "device=CUDA",
                                               "parallel.gpu_transport=NCCL"))
        self.assertEqual(result.returncode, 5, result.stdout + result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        for part in ["GPU", "gpu_transport: HOST"]:
            self.assertIn(part, result.stderr)


if __name__ == "__main__":
    found = json.loads(subprocess.run([PROGRAM, "doctor", "--json"], capture_output=True, text=True,
                                      check=False).stdout)
    if not found["gpus"]:
        reasons = [state["why_none"] for state in found["backends"] if state["device"] == "cuda"]
        print("skipped:", *reasons)
        sys.exit(SKIPPED)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Device)
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
