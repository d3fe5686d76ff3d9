#!/usr/bin/env python3
"""The program's command line: exit statuses, and one clear message per error.

usage: cli_test.py PROGRAM              as a user types it
       cli_test.py PROGRAM MPIRUN...    the same errors on MPI ranks; MPIRUN starts them
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv[1]
MPIRUN = sys.argv[2:]
RANKS = 3
CONFIG = """
model { preset: "tiny" }
data { path: "%s/none" sequence_length: 64 }
train { steps: 2 run_directory: "%s/run" }
"""


CLUSTER = """
within_node { seconds_per_message: 1e-6 bytes_per_second: 5e9 }
between_nodes { seconds_per_message: 2e-5 bytes_per_second: 1e9 }
ranks_per_node: 4
memory_bytes_per_second: 2e10
kernels { dtype: "f32" head_dim: 16 lengths: [16] forward: [2e-9] backward: [5e-9] }
"""


class CommandLine(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.config = self.write("c.txtpb", CONFIG % (self.folder.name, self.folder.name))

    def write(self, name, text):
        path = pathlib.Path(self.folder.name) / name
        path.write_text(text)
        return str(path)

    def run_program(self, *arguments, launcher=()):
        # Not the launcher that may have started this test.
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
        environment["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        return subprocess.run([*launcher, PROGRAM, *arguments], capture_output=True, text=True,
                              timeout=60, env=environment, cwd=self.folder.name)

    def expect_error(self, status, *parts, command, launcher=()):
        result = self.run_program(*command, launcher=launcher)
        lines = [line for line in result.stderr.splitlines() if line.startswith("longhaul: ")]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("longhaul: error: "), lines[0])
        for part in parts:
            self.assertIn(part, lines[0])
        self.assertEqual(result.returncode, status, result.stderr)
        return result


class Shell(CommandLine):
    def error(self, status, *parts, command):
        result = self.expect_error(status, *parts, command=command)
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(result.stderr.splitlines()), 1)

    def test_version_and_help(self):
        result = self.run_program("--version")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertRegex(result.stdout, r"^longhaul \d+\.\d+\.\d+\n$")
        for command in [(), ("train",), ("bench", "train"), ("data", "prepare")]:
            result = self.run_program(*command, "--help")
            self.assertEqual(result.returncode, 0)
            self.assertIn("Usage: ", result.stdout)
        self.assertIn("--config", self.run_program("train", "--help").stdout)

    def test_check(self):
        result = self.run_program("check", "--config", self.config, "--ranks", "3")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("strategy ring on layout zigzag, 3 sequence ranks", result.stdout)
        result = self.run_program("check", "--config", self.config, "--ranks", "2", "--json",
                                  "--set", "train.dtype=BF16", "--set", "parallel.strategy=ulysses")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([line["tensor"] for line in lines], ["out", "lse", "dq", "dk", "dv"] * 2)
        self.assertEqual([line["dtype"] for line in lines], ["f64"] * 5 + ["bf16"] * 5)
        for line in lines:
            self.assertLessEqual(line["max_relative_error"], line["limit"])
        self.error(2, "parallel.strategy", "did you mean `ring`?",
                   command=["check", "--config", self.config, "--set", "parallel.strategy=rign"])

    def test_unknown_names(self):
        self.error(2, "one of: train, plan, check, data, generate, eval, checkpoint, bench, "
                      "doctor", command=[])
        self.error(2, "unknown subcommand `tran`", "did you mean `train`?", command=["tran"])
        self.error(2, "longhaul data: unknown subcommand `prpare`", "did you mean `prepare`?",
                   command=["data", "prpare"])
        self.error(2, "longhaul data: no subcommand", command=["data"])
        self.error(2, "unknown option --confg", "did you mean `--config`?",
                   command=["train", "--confg", self.config])
        self.error(2, "unexpected argument `x`", command=["train", "--config", self.config, "x"])
        self.error(2, "--config is required", command=["train"])

    def test_configuration(self):
        bad = self.write("bad.txtpb", "model {\n  layrs: 3\n}")
        self.error(2, f"{bad}:2:3: unknown field `layrs`", "did you mean `layers`?",
                   command=["train", "--config", bad])
        self.error(2, "nowhere", "No such file", command=["train", "--config", "nowhere"])
        for override, part in [("model.layrs=3", "did you mean `layers`?"),
                               ("model.layers=x", "not a whole number"),
                               ("train.steps=0", "train.steps: 0 is too small"),
                               ("train.batch_tokens=65", "set it to 128"),
                               ("parallel.strategy=rnig", "did you mean `ring`?"),
                               ("parallel.strategy=outo", "did you mean `auto`?"),
                               ("parallel.backward_strategy=rnig", "did you mean `ring`?"),
                               ("parallel.ranks_per_node=-1", "-1 is too small")]:
            self.error(2, part, command=["train", "--config", self.config, "--set", override])

    def test_ranks(self):
        for ranks in ["0", "-1", "100000"]:
            self.error(2, f"--ranks {ranks}", "1 to ",
                       command=["train", "--config", self.config, "--ranks", ranks])
        self.error(2, "--ranks", command=["train", "--config", self.config, "--ranks", "two"])
        self.error(2, "2 replicas cannot share 3 ranks",
                   command=["train", "--config", self.config, "--ranks", "3",
                            "--set", "parallel.data=2"])

    def plan(self, *arguments):
        result = self.run_program("plan", "--config", self.config, *arguments)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def test_plan(self):
        cluster = self.write("cluster.txtpb", CLUSTER)
        given = ["--set", f"parallel.cluster={cluster}", "--ranks", "8", "--set",
                 "data.sequence_length=1000"]
        plan = json.loads(self.plan("--json", *given))
        self.assertEqual((plan["ranks"], plan["ranks_per_node"]), (8, 4))
        self.assertEqual(plan["between_nodes"]["bytes_per_second"], 1e9)
        self.assertAlmostEqual(plan["area_max_over_mean"], 1, delta=0.02)
        self.assertNotIn("ASSUMED", " ".join(plan["sources"]))
        for direction, accumulators in [("forward", 0), ("backward", 4)]:
            choice = plan[direction]
            self.assertEqual(choice["configured"], "ring")
            self.assertIn(choice["winner"], choice["why"])
            by_name = {c["strategy"]: c for c in choice["candidates"]}
            times = [c["seconds"] for c in choice["candidates"] if "refusal" not in c]
            self.assertEqual(times, sorted(times))
            ring = by_name["ring"]
            # (P-1) n K 2d (b + g): 125 rows, 2 kv heads of 16.
            self.assertEqual(ring["received_bytes"], {"mean": 7 * 125 * 2 * 32 * (4 + accumulators),
                                                      "max": 7 * 125 * 2 * 32 * (4 + accumulators)})
            self.assertEqual(ring["steps"], 8 + (accumulators > 0))
        table = self.plan(*given)
        for part in ["forward", "backward", "* ring", "received mean", "links and memory: " + cluster,
                     "largest rank / mean"]:
            self.assertIn(part, table)
        self.assertIn("plan ms", table)
        for candidate in plan["forward"]["candidates"]:
            if "refusal" not in candidate:
                self.assertGreater(candidate["planning_seconds"], 0)
                self.assertGreater(candidate["bands"], 0)
        self.assertIsNone(plan["row_price"])  # the layout does not go by documents
        # Two nodes: rows are paid for, unless the configuration says how much; one: nothing is moved.
        balanced = [*given, "--set", "parallel.layout=balanced"]
        price = json.loads(self.plan("--json", *balanced))["row_price"]
        self.assertGreater(price["pairs"], 0)
        self.assertIn("at 1 GB/s", price["why"])  # the link between nodes
        self.assertIn("a row of another rank: costs 3 pairs of attention (as configured",
                      self.plan(*balanced, "--set", "parallel.row_price=3"))
        self.assertIn("costs 0 pairs of attention (all ranks are on one node",
                      self.plan(*balanced, "--set", "parallel.ranks_per_node=8"))
        # Without a description what nobody measured is said to be assumed.
        self.assertEqual(self.plan("--ranks", "2").count("ASSUMED"), 3)
        refused = self.plan("--ranks", "8", "--set", "parallel.ranks_per_node=3")
        self.assertIn("double_ring  refuses: ", refused)
        # A larger bandwidth is never slower.
        faster = self.write("faster.txtpb", CLUSTER.replace("1e9", "2e9"))
        fast = json.loads(self.plan("--json", *given, "--set", f"parallel.cluster={faster}"))
        self.assertLessEqual(fast["forward"]["candidates"][0]["seconds"],
                             plan["forward"]["candidates"][0]["seconds"])

    def test_plan_of_linear_layers(self):
        cluster = self.write("cluster.txtpb", CLUSTER)
        given = ["--set", f"parallel.cluster={cluster}", "--ranks", "8", "--set",
                 "data.sequence_length=1000", "--set", "parallel.layout=contiguous"]
        plan = json.loads(self.plan("--json", *given, "--set", "model.pattern=LN"))
        self.assertEqual((plan["softmax_layers"], plan["linear_layers"]), (1, 1))
        self.assertIn("candidates", plan["forward"])
        linear = plan["linear"]
        # 4 heads with states of 16 x 16 in f32, and a decay for each head.
        state = 4 * 16 * 16 * 4
        self.assertEqual(linear["state_bytes"], state)
        for direction in ["forward", "backward"]:
            by_name = {c["method"]: c for c in linear[direction]}
            self.assertEqual(by_name["all_gather"]["received_bytes"],
                             {"mean": 7 * (state + 16), "max": 7 * (state + 16)})
            self.assertEqual(by_name["ring"]["received_bytes"]["max"], state)
            # On this cluster, by its links alone, and beyond what computing takes.
            for method in by_name.values():
                self.assertGreater(method["seconds"], method["exposed_seconds"])
        self.assertEqual((linear["configured"], linear["method"]), ("all_gather", "all_gather"))
        # Heads that forget over 125 tokens: with slopes 1/4 and 1/16, not 1/64 and 1/256.
        bound = json.loads(self.plan("--json", *given, "--set", "model.pattern=LN", "--set",
                                     "parallel.linear_decay_bound=1e-3"))["linear"]
        self.assertIn("2 of 4 heads", bound["left_out"][0])
        by_name = {c["method"]: c for c in bound["forward"]}
        half = (state + 16) // 2
        self.assertEqual(by_name["all_gather"]["received_bytes"],
                         {"mean": 7 * half + state / 2 * 7 / 8, "max": 7 * half + state // 2})
        self.assertEqual(linear["left_out"], [])
        auto = json.loads(self.plan("--json", *given, "--set", "model.pattern=LN", "--set",
                                    "parallel.linear_method=auto"))["linear"]
        self.assertEqual(auto["method"], auto["winner"])
        self.assertIn(auto["winner"] + " ", auto["why"])
        pure = json.loads(self.plan("--json", *given, "--set", "model.pattern=L"))
        self.assertEqual((pure["softmax_layers"], "forward" in pure), (0, False))
        table = self.plan(*given, "--set", "model.pattern=LN")
        for part in ["1 with softmax attention, 1 with linear", "* ring", "* all_gather",
                     "linear attention (lightning)"]:
            self.assertIn(part, table)

    def test_plan_errors(self):
        bad = self.write("bad_cluster.txtpb", "within_node {\n  bytes_per_secnd: 1\n}")
        for part, arguments in [
                ("--ranks 0: 1 to ", ["--ranks", "0"]),
                (f"{bad}:2:3: unknown field `bytes_per_secnd`", ["--set", f"parallel.cluster={bad}"]),
                ("cannot read the cluster description nowhere", ["--set",
                                                                 "parallel.cluster=nowhere"]),
                ("2 replicas cannot share 3 ranks", ["--ranks", "3", "--set", "parallel.data=2"])]:
            self.error(2, part, command=["plan", "--config", self.config, *arguments])
        # A given figure is wrong, whether or not it is needed.
        zero = self.write("zero.txtpb", CLUSTER.replace("2e10", "0"))
        self.error(2, "memory_bytes_per_second is 0", command=[
            "plan", "--config", self.config, "--set", f"parallel.cluster={zero}"])

    def test_bench_comm(self):
        file = str(pathlib.Path(self.folder.name) / "written.txtpb")
        result = self.run_program("bench", "comm", "--ranks", "2", "--bytes", "8,4096", "--json",
                                  "--write", file, "--dtype", "f32", "--head-dim", "16")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        figures = [json.loads(line) for line in result.stdout.splitlines()]
        found = [(f["case"]["op"], f["case"].get("bytes")) for f in figures]
        self.assertEqual(found, [(op, size) for op in ["ping_pong", "shift", "all_gather", "read"]
                                 for size in [8, 4096]] + 2 * [("link", None)])
        for figure in figures:
            self.assertEqual((figure["bench"], figure["unit"]), ("comm", "GB/s"))
            self.assertEqual((figure["case"]["ranks"], figure["case"]["ranks_per_node"]), (2, 2))
            self.assertGreater(figure["value"], 0)
            self.assertAlmostEqual(figure["ratio"], figure["value"] / figure["limit"])
        # What it wrote is what `plan` reads.
        plan = json.loads(self.plan("--json", "--ranks", "4", "--set", f"parallel.cluster={file}"))
        self.assertEqual(plan["ranks_per_node"], 2)
        self.assertIn(f"kernels: {file}", plan["sources"])
        self.assertGreater(plan["within_node"]["bytes_per_second"], 0)
        self.error(2, "--bytes 0", command=["bench", "comm", "--bytes", "8,0"])
        self.error(5, "cannot write", command=["bench", "comm", "--bytes", "8", "--write",
                                               "nowhere/x", "--dtype", "f32", "--head-dim", "16"])

    def test_bench_auto(self):
        result = self.run_program("bench", "auto", "--ranks", "2", "--n", "97", "--mask",
                                  "causal,packed", "--mean-document", "20", "--d", "16",
                                  "--seconds", "0", "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        *figures, summary = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([(f["case"]["mask"], f["case"]["op"]) for f in figures],
                         [(mask, op) for mask in ["causal", "packed"]
                          for op in ["forward", "backward"]])
        for figure in figures:
            times = {name: s["seconds"] for name, s in figure["strategies"].items()}
            self.assertEqual(figure["limit"], 1e3 * min(times.values()))
            self.assertEqual(figure["value"], 1e3 * times[figure["chosen"]])
            self.assertAlmostEqual(figure["regret"], figure["value"] / figure["limit"] - 1)
            predicted = {name: s["predicted_seconds"] for name, s in figure["strategies"].items()}
            self.assertEqual(predicted[figure["chosen"]], min(predicted.values()))
        regrets = sorted(f["regret"] for f in figures)
        self.assertAlmostEqual(summary["value"], (regrets[1] + regrets[2]) / 2)
        self.error(2, "--kv-heads 3 does not divide", command=["bench", "auto", "--kv-heads", "3"])

    def test_missing_corpus(self):
        for ranks in ["1", "3"]:
            self.error(3, f"{self.folder.name}/none",
                       command=["train", "--config", self.config, "--ranks", ranks])
        self.error(3, "nowhere", command=["data", "inspect", "nowhere"])

    def test_doctor(self):
        result = self.run_program("doctor", "--json")
        found = json.loads(result.stdout)
        self.assertEqual(result.returncode, 0 if found["can_train"] else 5)
        self.assertEqual(found["cores"]["in_affinity"], len(os.sched_getaffinity(0)))
        self.assertGreater(found["memory"]["total_bytes"], 1 << 28)
        self.assertEqual(found["launched_by"], "a shell")
        table = self.run_program("doctor")
        self.assertEqual(table.returncode, result.returncode)
        self.assertIn(found["versions"]["Protobuf"], table.stdout)

    def test_bench_arguments(self):
        for option, value in [("--ranks", "1,0"), ("--lengths", "64,0"), ("--steps", "0")]:
            self.error(2, option, command=["bench", "train", "--config", self.config, option,
                                           value])


class Ranks(CommandLine):
    """The launcher reports the first status that is not 0, and ends the other ranks."""

    def error(self, status, *parts, command):
        self.expect_error(status, *parts, command=command,
                          launcher=[*MPIRUN, "-n", str(RANKS)])

    def test_errors_are_printed_once(self):
        self.error(2, "did you mean `train`?", command=["tran"])
        self.error(2, "No such file", command=["train", "--config", "nowhere"])
        self.error(2, "did you mean `layers`?",
                   command=["train", "--config", self.config, "--set", "model.layrs=3"])
        self.error(2, "2 replicas cannot share 3 ranks",
                   command=["train", "--config", self.config, "--set", "parallel.data=2"])
        self.error(2, "leave out one of the two",
                   command=["train", "--config", self.config, "--ranks", "2"])
        self.error(3, f"{self.folder.name}/none", command=["train", "--config", self.config])

    def test_one_rank_with_another_configuration(self):
        result = self.run_program("train", "--config", self.config, ":", "-n", "1", PROGRAM, "train",
                                  "--config", "nowhere", launcher=[*MPIRUN, "-n", "1"])
        self.assertEqual(result.returncode, 2)
        lines = [line for line in result.stderr.splitlines() if line.startswith("longhaul: ")]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertIn("rank 1: cannot read the configuration nowhere", lines[0])

    def test_doctor_prints_once_a_node(self):
        result = self.run_program("doctor", "--json", launcher=[*MPIRUN, "-n", str(RANKS)])
        self.assertEqual(json.loads(result.stdout)["launched_by"], f"mpirun (rank 0 of {RANKS})")


if __name__ == "__main__":
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Ranks if MPIRUN else Shell)
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
