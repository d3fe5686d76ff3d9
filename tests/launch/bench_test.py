#!/usr/bin/env python3
"""The benchmarks of single operations and of attention over ranks: what they print and refuse. No time is asserted.

usage: bench_test.py PROGRAM [MPIRUN...]
"""
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv[1]
MPIRUN = sys.argv[2:]  # without it, what takes processes is left out
TINY = {
    "linear": ["--d", "32", "--n", "70", "--heads", "2"],
    "attention": ["--n", "96", "--d", "32", "--heads", "2"],
    "gemm": ["--tokens", "48", "--weights", "40x24"],
    "pointwise": ["--n", "24", "--width", "64", "--d", "16", "--vocabulary", "50", "--loss-n", "16",
                  "--loss-width", "32"],
}
POINTWISE = {
    "rms_norm_forward", "rms_norm_backward", "head_norm_forward", "head_norm_backward", "rope",
    "lrpe_forward", "lrpe_backward", "gated_unit_forward", "gated_unit_backward",
    "log_gate_forward", "log_gate_backward", "decay_gate_forward", "decay_gate_backward", "add",
    "copy_from_accumulator", "copy_to_accumulator", "fill_zero", "adamw", "embedding_forward",
    "embedding_backward", "attention_delta", "linear_cross_entropy"}
POINTWISE_F32 = POINTWISE | {"add_to", "sum_of_squares", "attention_init", "attention_merge"}


def run(*arguments):
    return subprocess.run([PROGRAM, "bench", *arguments], capture_output=True, text=True,
                          timeout=240)


class Bench(unittest.TestCase):
    def table(self, name, *arguments):
        result = run(name, *TINY[name], "--threads", "2", "--seconds", "0.001", *arguments)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return result.stdout.splitlines()

    def figures(self, name, *arguments):
        """The objects of a run, checked for what all have in common."""
        figures = [json.loads(line) for line in self.table(name, "--json", *arguments)]
        for figure in figures:
            self.assertEqual(figure["bench"], name)
            case = figure["case"]
            self.assertEqual(case["threads"], 2)
            self.assertIn(case["dtype"], ["f32", "bf16"])
            for key in ["value", "limit", "ratio"]:
                self.assertTrue(math.isfinite(figure[key]) and figure[key] > 0, figure)
            self.assertAlmostEqual(figure["ratio"], figure["value"] / figure["limit"])
            self.assertIsInstance(figure["limit_name"], str)
            if figure["unit"] == "share of the limit":
                continue
            self.assertIn(figure["unit"], ["GFLOP/s", "GB/s"])
            self.assertGreater(figure["seconds"], 0)
            self.assertGreaterEqual(figure["repetitions"], 5)
            self.assertTrue(0 <= figure["limit_drift"] <= 1, figure)
        return figures

    def error(self, *parts, command):
        result = run(*command)
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        for part in ["longhaul: error: ", *parts]:
            self.assertIn(part, result.stderr)

    def test_attention(self):
        figures = self.figures("attention", "--mask", "causal,full,window,packed", "--window", "17",
                               "--mean-document", "20", "--kv-heads", "1")
        found = [(f["case"]["dtype"], f["case"]["op"], f["case"]["mask"]) for f in figures]
        self.assertEqual(found, [(dtype, op, mask) for dtype in ["f32", "bf16"]
                                 for op in ["forward", "backward"]
                                 for mask in ["causal", "full", "window", "packed"]])
        for figure in figures:
            case = figure["case"]
            self.assertEqual([case[key] for key in ["d", "n", "heads", "kv_heads"]],
                             [32, 96, 2, 1])
            self.assertEqual("time_to_share_of_causal" in figure, case["mask"] == "window")
            self.assertEqual("speed_to_one_block" in figure, case["mask"] == "packed")
            # The work, counted here by its definition.
            pairs = {"causal": sum(min(i + 1, 96) for i in range(96)), "full": 96 * 96,
                     "window": sum(min(i + 1, 17) for i in range(96))}.get(case["mask"])
            if pairs is not None:
                flops = {"forward": 4, "backward": 10}[case["op"]] * 32 * 2 * pairs
                self.assertAlmostEqual(figure["value"] * figure["seconds"] * 1e9 / flops, 1)

    def test_linear(self):
        kinds = ["lightning", "gla", "delta"]
        figures = self.figures("linear", "--kind", ",".join(kinds))
        found = [(f["case"]["kind"], f["case"]["dtype"], f["case"]["op"]) for f in figures]
        self.assertEqual(found, [(kind, dtype, op) for kind in kinds for dtype in ["f32", "bf16"]
                                 for op in ["forward", "backward"]])
        for figure in figures:
            n = figure["case"]["n"]
            seconds = figure["seconds"]
            self.assertAlmostEqual(figure["million_head_tokens_s"] * seconds / (2 * n * 1e-6), 1)
            squares, blocks = {
                ("lightning", "forward"): (4, 2), ("lightning", "backward"): (10, 5),
                ("gla", "forward"): (4, 2), ("gla", "backward"): (10, 5),
                ("delta", "forward"): (6, 4), ("delta", "backward"): (16, 11),
            }[figure["case"]["kind"], figure["case"]["op"]]
            flops = (squares * 32 * 32 + blocks * 64 * 32) * 2 * n
            self.assertAlmostEqual(figure["value"] * seconds * 1e9 / flops, 1)

    def test_gemm(self):
        figures = self.figures("gemm")
        for dtype in ["f32", "bf16"]:
            mine = [f for f in figures if f["case"]["dtype"] == dtype]
            self.assertEqual([f["case"]["op"] for f in mine],
                             ["nt", "nn", "tn", "geometric mean", "minimum"])
            ratios = [f["ratio"] for f in mine[:3]]
            self.assertAlmostEqual(mine[3]["ratio"], math.prod(ratios) ** (1 / 3))
            self.assertEqual(mine[4]["ratio"], min(ratios))
            for figure in mine[:3]:
                self.assertAlmostEqual(figure["value"] * figure["seconds"] * 1e9, 2 * 48 * 40 * 24,
                                       places=3)

    def test_pointwise(self):
        figures = self.figures("pointwise")
        for dtype, operations in [("f32", POINTWISE_F32), ("bf16", POINTWISE)]:
            mine = {f["case"]["op"]: f for f in figures if f["case"]["dtype"] == dtype}
            self.assertEqual(set(mine), operations)
            self.assertEqual(mine["linear_cross_entropy"]["unit"], "GFLOP/s")
            self.assertIn("time_to_products", mine["linear_cross_entropy"])
            size = {"f32": 4, "bf16": 2}[dtype]
            for op, passes in [("gated_unit_forward", 3), ("gated_unit_backward", 5), ("add", 3),
                               ("fill_zero", 1)]:
                self.assertEqual(mine[op]["unit"], "GB/s")
                self.assertAlmostEqual(mine[op]["value"] * mine[op]["seconds"] * 1e9,
                                       passes * 24 * 64 * size, places=3)

    def test_cad(self):
        result = run("cad", "--servers", "4,8", "--tokens", "8192", "--samples", "1", "--heads",
                     "8", "--kv-heads", "2", "--d", "64", "--simulated", "4", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        figures = [json.loads(line) for line in result.stdout.splitlines()]
        policies = ["fixed packing", "per-document context parallel", "published greedy", "ours",
                    "ours, as balanced as greedy"]
        self.assertEqual([(f["case"]["mix"], f["case"]["servers"], f["case"]["policy"])
                          for f in figures],
                         [(mix, servers, policy) for mix in ["uniform", "prolong", "wlb", "long"]
                          for servers in [4, 8] for policy in policies])
        for figure in figures:
            policy = figure["case"]["policy"]
            if policy == "ours":
                self.assertLessEqual(figure["value"], 1.06)  # and a tile of few tokens
            if policy == "fixed packing":
                self.assertEqual(figure["moves"], 0)
            if policy == "published greedy":
                greedy = figure
            if policy == "ours, as balanced as greedy":
                self.assertLessEqual(figure["bytes_per_token_mean"],
                                     greedy["bytes_per_token_mean"])
            self.assertEqual(figure["simulated_seconds"] is None, figure["case"]["servers"] == 8)
        self.error("--servers", "0", command=["cad", "--servers", "0"])
        self.error("--kv-heads", "divisor", command=["cad", "--heads", "8", "--kv-heads", "3"])
        self.error("--real", "exactly 2 ranks", command=["cad", "--real"])

    def test_layout(self):
        result = run("layout", "--ranks", "4", "--scale", "1", "--tokens", "4096", "--samples", "2",
                     "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        figures = [json.loads(line) for line in result.stdout.splitlines()]
        layouts = ["contiguous", "zigzag", "greedy", "balanced <= 1.05", "balanced"]
        self.assertEqual([(f["case"]["mix"], f["case"]["layout"]) for f in figures],
                         [(mix, layout) for mix in ["uniform", "prolong", "wlb", "long"]
                          for layout in layouts])
        for figure in figures:
            self.assertGreaterEqual(figure["max_over_mean_area"], 1)
            self.assertGreaterEqual(figure["most_rows"], figure["value"])
            if figure["case"]["layout"] == "balanced <= 1.05":
                # One query's keys are little beside a rank's work.
                self.assertLess(figure["max_over_mean_area"], 1.06)
                self.assertGreaterEqual(figure["value"], 0.99 * figure["limit"])
        self.error("--ranks", "0", command=["layout", "--ranks", "0"])
        self.error("--mix", "wlb, long", command=["layout", "--mix", "wlbb"])
        frontier = run("layout", "--ranks", "4", "--scale", "8", "--tokens", "4096", "--detail",
                       "frontier", "--mix", "prolong").stdout.splitlines()
        self.assertTrue(frontier[0].startswith("| mix | x | ranks |"), frontier)
        self.assertGreater(len(frontier), 7)

    def test_tables(self):
        for name in TINY:
            lines = self.table(name, "--dtype", "f32", "--op",
                               {"attention": "forward", "linear": "forward", "gemm": "nt",
                                "pointwise": "rope"}[name])
            self.assertTrue(lines[0].startswith("# 2 threads, "), lines)
            self.assertTrue(lines[1].startswith("op "), lines)
            self.assertRegex(lines[2], r"^\S+ +f32 .* (GFLOP|GB)/s .*%")
            self.assertEqual(len(lines), 5 if name == "gemm" else 3)

    def test_baseline_instruction_set(self):
        for name in TINY:
            figures = self.figures(name, "--isa", "BASELINE", "--op",
                                   {"attention": "forward", "linear": "forward", "gemm": "nt",
                                    "pointwise": "gated_unit_forward"}[name])
            self.assertEqual({f["case"]["isa"] for f in figures}, {"BASELINE"})
            # It has no products of bf16 pairs.
            limits = {f["limit_name"] for f in figures if f["unit"] == "GFLOP/s"}
            self.assertLessEqual(limits, {"measured f32 multiply-add peak"})

    def test_bad_values(self):
        for name in TINY:
            self.error("--threads -1", "1 to ", command=[name, "--threads", "-1"])
            self.error("--dtype f16", "one of f32, bf16", command=[name, "--dtype", "f32,f16"])
            self.error("--isa SSE9", "BASELINE", command=[name, "--isa", "SSE9"])
            self.error("--seconds -1", command=[name, "--seconds", "-1"])
            self.error("--op x", "one of ", command=[name, "--op", "x"])
            self.error("--threads", command=[name, "--threads", "two"])
        self.error("--n 0", command=["attention", "--n", "64,0"])
        self.error("--d 0", command=["attention", "--d", "0"])
        self.error("--mask causl", "packed", command=["attention", "--mask", "causl"])
        self.error("--window 0", command=["attention", "--window", "0"])
        self.error("--kv-heads 3", "set --heads",
                   command=["attention", "--n", "64", "--kv-heads", "3"])
        self.error("--heads -1", command=["attention", "--heads", "-1"])
        self.error("--tokens 0", command=["gemm", "--tokens", "0"])
        for weights in ["512", "0x512", "2048x", "axb", "1x2x3"]:
            self.error(f"--weights {weights}", "OUTxIN", command=["gemm", "--weights", weights])
        self.error("--d 48", "--width 64", command=["pointwise", "--width", "64", "--d", "48"])
        self.error("--n 0", command=["pointwise", "--n", "0"])
        self.error("unknown option --lenghts", command=["attention", "--lenghts", "64"])
        self.error("no subcommand", "attention", "gemm", "pointwise", command=[])
        self.error("unknown subcommand `atention`", "did you mean `attention`?",
                   command=["atention"])


@unittest.skipUnless(MPIRUN, "no mpirun")
class RealCad(unittest.TestCase):
    POLICIES = ["perfect balance", "fixed packing", "ours"]

    def start(self, *arguments):
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
        environment["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            prefix = pathlib.Path(folder) / "trace"
            done = subprocess.run(
                [*MPIRUN, "-n", "2", PROGRAM, "bench", "cad", "--real", "--tokens", "512", "--d",
                 "32", "--dtype", "f32", "--mix", "long", "--seconds", "0", "--json", "--trace",
                 str(prefix), *arguments],
                env=environment, capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
            traces = [json.loads(pathlib.Path(f"{prefix}.long.rank{rank}.json").read_text())
                      for rank in range(2)]
        return [json.loads(line) for line in done.stdout.splitlines()], traces

    def slices(self, trace):
        """Names by what was done: of both passes, without the step."""
        found = {"X": set(), "b": set(), "e": set()}
        for event in trace["traceEvents"]:
            if event["ph"] == "M":
                continue
            found[event["ph"]].add(event["name"].split(",")[0])
            self.assertGreaterEqual(event.get("dur", 0), 0)
        return found

    def test_both(self):
        figures, traces = self.start("--op", "both", "--heads", "4", "--kv-heads", "2")
        self.assertEqual([f["case"]["policy"] for f in figures], self.POLICIES)
        perfect, fixed, ours = figures
        for figure in figures:
            self.assertEqual((figure["bench"], figure["unit"], figure["case"]["op"],
                              figure["case"]["n"]), ("cad", "s", "both", 1024))
            for key in ["value", "limit", "busy_seconds", "kernel_seconds"]:
                self.assertTrue(math.isfinite(figure[key]) and figure[key] > 0, figure)
            self.assertGreaterEqual(figure["busy_seconds"], figure["kernel_seconds"])
            self.assertGreaterEqual(figure["busy_max_over_mean"], 1)
            for key in ["blocked_seconds", "lost_percent"]:
                self.assertGreaterEqual(figure[key], 0)
            self.assertEqual(figure["limit"], perfect["value"])
            self.assertIn("half of the heads", figure["limit_name"])
        self.assertEqual((perfect["bytes_per_token_mean"], perfect["simulated_seconds"]), (0, 0))
        # The documents of the first rank are longer: tasks go to the other.
        self.assertGreater(fixed["planned_max_over_mean"], 1.2)
        self.assertLess(ours["planned_max_over_mean"], fixed["planned_max_over_mean"])
        self.assertGreater(ours["bytes_per_token_mean"], fixed["bytes_per_token_mean"])
        for figure in [fixed, ours]:
            self.assertGreater(figure["simulated_seconds"], 0)
            self.assertGreater(figure["planning_seconds"], 0)
        for rank, trace in enumerate(traces):
            found = self.slices(trace)
            self.assertEqual(found["X"], {f"{direction} {what}"
                                          for direction in ["forward", "backward"]
                                          for what in ["compute", "copy", "wait"]}, rank)
            self.assertEqual(found["b"], {"forward messages", "backward messages"})
            self.assertEqual(found["e"], found["b"])

    def test_the_trace_is_of_the_last_operation(self):
        figures, traces = self.start("--op", "both,forward", "--heads", "1", "--kv-heads", "1")
        self.assertEqual([f["case"]["op"] for f in figures], ["both"] * 3 + ["forward"] * 3)
        for figure in figures:  # heads that two ranks cannot share
            self.assertIn("half the time", figure["limit_name"])
        for trace in traces:
            self.assertEqual({name.split()[0] for name in self.slices(trace)["X"]}, {"forward"})


class Sequence(unittest.TestCase):
    """Attention over ranks."""
    CASES = ["--n", "96", "--d", "32", "--heads", "2", "--window", "24", "--mean-document", "20",
             "--seconds", "0.001"]

    def run_cases(self, *arguments):
        result = run("sequence", *self.CASES, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        # What a strategy cannot do is said, and nothing else.
        for line in result.stderr.splitlines():
            self.assertRegex(line, r"^# strategy \w+ needs ")
        return result

    def figures(self, *arguments):
        result = self.run_cases("--json", *arguments)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_every_strategy_beside_the_kernel_alone(self):
        figures = self.figures("--ranks", "2")
        strategies = {figure["case"]["strategy"] for figure in figures}
        self.assertLessEqual({"ring", "ulysses"}, strategies)
        self.assertEqual(len(figures), len(strategies) * 3 * 2)  # masks x passes
        for figure in figures:
            case = figure["case"]
            self.assertEqual((figure["bench"], case["ranks"], figure["unit"]),
                             ("sequence", 2, "GFLOP/s"))
            self.assertAlmostEqual(figure["ratio"], figure["value"] / figure["limit"])
            self.assertGreaterEqual(figure["repetitions"], 5)
            self.assertGreaterEqual(figure["imbalance"], 1)
            self.assertGreaterEqual(figure["waited_seconds"], 0)
            if case["strategy"] != "ring" or case["mask"] != "causal":
                continue
            # Keys and values of 48 rows, twice (both ways), f32; their gradients travel.
            one = 2 * 2 * 48 * 2 * 32 * 4
            both = case["op"] == "both"
            self.assertEqual(figure["in_place_bytes"], 2 * one if both else one)
            self.assertEqual(figure["moved_bytes"], one if both else 0)

    def test_moved_and_dtypes(self):
        figures = self.figures("--ranks", "3", "--moved", "--strategy", "ring", "--dtype", "bf16",
                               "--mask", "full", "--op", "backward", "--layout", "zigzag,striped")
        self.assertEqual([f["case"]["layout"] for f in figures], ["zigzag", "striped"])
        for figure in figures:
            self.assertEqual(figure["in_place_bytes"], 0)
            self.assertGreater(figure["moved_bytes"], 0)

    def test_refusals(self):
        for command, part in [(["--strategy", "spiral"], "--strategy spiral: one of ring"),
                              (["--n", "0"], "--n 0: 1 or more"),
                              (["--row-price", "-1"], "--row-price -1: 0 or more"),
                              (["--heads", "4", "--kv-heads", "3"], "does not divide")]:
            result = run("sequence", *command)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn(part, result.stderr)

    def test_table(self):
        result = self.run_cases("--ranks", "2", "--mask", "causal")
        self.assertIn("2 ranks", result.stdout.splitlines()[0])
        self.assertIn("imbalance", result.stdout.splitlines()[1])


class Scan(unittest.TestCase):
    CASES = ["scan", "--heads", "4", "--d", "16", "--n", "61", "--seconds", "0.001"]

    def figures(self, *arguments):
        result = run(*self.CASES, "--json", *arguments)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_bytes_and_chains(self):
        figures = self.figures("--ranks", "3", "--threads", "500", "--softmax", "--layout",
                               "contiguous")
        self.assertEqual([f["case"]["op"] for f in figures], ["forward"] * 5 + ["both"] * 5)
        state = 4 * 16 * 16 * 4  # heads x d x d, f32
        for figure in figures:
            passes = 1 if figure["case"]["op"] == "forward" else 2
            method = figure["case"]["method"]
            self.assertNotIn("value", figure)  # there are no 1500 cores
            if method == "all_gather":
                self.assertEqual(figure["received_bytes"], passes * 2 * (state + 4 * 4))  # and decays
                self.assertEqual(figure["longest_chain"], passes)
            if method == "ring":  # two of three ranks receive states
                self.assertEqual(figure["received_bytes"], passes * state * 2 // 3)
                self.assertEqual(figure["longest_chain"], passes * 2)
            if method == "softmax ring" and passes == 1:
                self.assertEqual(figure["longest_chain"], 2)
                self.assertEqual(figure["received_bytes"], 2 * 61 * 4 * 2 * 16 * 4 // 3)

    def test_times(self):
        for figure in self.figures("--ranks", "1", "--threads", "1", "--layout", "zigzag"):
            self.assertGreater(figure["value"], 0)
            self.assertAlmostEqual(figure["ratio"], figure["limit"] / figure["value"])
            self.assertEqual((figure["received_bytes"], figure["longest_chain"]), (0, 0))

    def test_refusals(self):
        for arguments, part in [(["--method", "tree"], "--method"), (["--layout", "striped"],
                                                                     "--layout"),
                                (["--heads", "0"], "--heads"), (["--n", "-1"], "--n")]:
            result = run(*self.CASES[:1], *arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn(part, result.stderr)


class Auto(unittest.TestCase):
    CASES = ["auto", "--ranks", "2", "--n", "64", "--heads", "4", "--kv-heads", "2", "--d", "16",
             "--seconds", "0.001", "--rounds", "2"]

    def test_every_mask(self):
        masks = ["causal", "full", "window", "prefix", "packed", "packed-window"]
        result = run(*self.CASES, "--mask", ",".join(masks), "--window", "9", "--prefix", "20",
                     "--mean-document", "17", "--moved", "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        *figures, summary = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([(f["case"]["mask"], f["case"]["op"]) for f in figures],
                         [(mask, op) for mask in masks for op in ["forward", "backward"]])
        for figure in figures:
            self.assertFalse(figure["case"]["in_place"])
            self.assertGreaterEqual(figure["regret"], 0)
            self.assertIn(figure["fastest"], figure["strategies"])
            self.assertGreaterEqual(figure["repetitions"], 2)
            # Equal plans are timed once: those of a node's double ring are the ring's.
            timed = list(figure["strategies"])
            same = {name: s["same"] for name, s in figure["strategies"].items()}
            self.assertIn("double_ring", same["ring"])
            self.assertEqual("query_ring" in timed, figure["case"]["op"] == "backward")
            self.assertEqual(len(timed) + sum(map(len, same.values())), 7)  # lightseq refuses
            self.assertNotIn("disaggregated", timed)  # which auto does not take
            for strategy in figure["strategies"].values():
                self.assertGreater(strategy["predicted_seconds"], 0)
        self.assertEqual((summary["unit"], summary["cases"]), ("regret", 12))

    def test_refusals(self):
        for arguments, part in [(["--mask", "no"], "packed-window"), (["--mix", "wlbb"], "wlb"),
                                (["--rounds", "0"], "--rounds"), (["--prefix", "0"], "--prefix")]:
            result = run(*self.CASES, *arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""), arguments)
            self.assertIn(part, result.stderr)


if __name__ == "__main__":
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    suite = unittest.TestSuite([load(Bench), load(RealCad), load(Sequence), load(Scan), load(Auto)])
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
