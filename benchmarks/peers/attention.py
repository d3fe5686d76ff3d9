#!/usr/bin/env python3
"""How fast is causal attention beside PyTorch's flash attention, on the same shapes and threads?

usage: .venv/bin/python benchmarks/peers/attention.py      --help explains the options

Needs PyTorch: python3 -m venv .venv && .venv/bin/pip install torch numpy. Exit status 5 without.

Both sides take turns, and medians of the rounds are compared. Both keep freed memory, and do what
a training step needs of them: operands and results are in the case's type. Ours gets the time of
the operations of its own that belong to that: forward, the accumulators' start and (bf16) the
result's rounding; backward, delta, the accumulators' zeros and (bf16) the gradients' rounding.
Those are measured once a shape (longhaul bench pointwise), as they are small. Theirs is the call
alone forward, and autograd alone backward, in the faster of two memory layouts: heads before or
after tokens, tried before the rounds. FLOPs are those of unmasked pairs: 4 d a pair forward,
10 d backward.
"""
import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
import typing

import common

AIMS = {"f32": 1.5, "bf16": 1.3}
OPERATIONS = ("forward", "backward")
LEAST_REPETITIONS = 3
LAYOUTS = ("heads first", "tokens first")


def usual_heads(tokens: int) -> int:
    """As `longhaul bench attention` chooses."""
    return 8 if tokens <= 2048 else 4 if tokens <= 8192 else 2


def flops(op: str, heads: int, n: int, d: int) -> float:
    return (4 if op == "forward" else 10) * d * heads * n * (n + 1) / 2


class Ours:
    """Seconds of `longhaul bench`, for one shape."""

    def __init__(self, options: argparse.Namespace, n: int, d: int, heads: int):
        self.options, self.n, self.d, self.heads = options, n, d, heads
        rows = self.bench("pointwise", "--dtype", "f32,bf16", "--width", str(heads * d), "--op",
                          "attention_init,attention_delta,copy_from_accumulator,fill_zero")
        self.around = {(row["case"]["op"], row["case"]["dtype"]): row["seconds"] for row in rows}

    def bench(self, name: str, *arguments: str) -> list[dict]:
        command = [str(self.options.program), "bench", name, "--json", "--n", str(self.n), "--d",
                   str(self.d), "--threads", str(self.options.threads), "--seconds",
                   str(self.options.seconds), *arguments]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def extra_seconds(self, op: str, dtype: str) -> float:
        """Of the operations around the kernel; accumulators are f32."""
        rounding = self.around["copy_from_accumulator", "bf16"] if dtype == "bf16" else 0.0
        if op == "forward":
            return self.around["attention_init", "f32"] + rounding
        zeros = self.around["fill_zero", "f32"]
        return self.around["attention_delta", dtype] + 3 * (zeros + rounding)

    def seconds(self, op: str, dtype: str) -> float:
        row, = self.bench("attention", "--op", op, "--dtype", dtype, "--mask", "causal", "--heads",
                          str(self.heads))
        assert row["case"]["threads"] == self.options.threads
        return row["seconds"] + self.extra_seconds(op, dtype)


class Theirs:
    """Seconds of PyTorch's flash attention, on [1, heads, n, d]."""

    def __init__(self, torch, options: argparse.Namespace, n: int, d: int, heads: int):
        self.torch, self.options, self.shape = torch, options, (1, heads, n, d)

    def operand(self, dtype: str, layout: str, seed: int):
        torch_type = {"f32": self.torch.float32, "bf16": self.torch.bfloat16}[dtype]
        generator = self.torch.Generator().manual_seed(seed)
        values = self.torch.empty(self.shape).uniform_(-1, 1, generator=generator).to(torch_type)
        if layout == "heads first":
            return values
        return values.transpose(1, 2).contiguous().transpose(1, 2)

    def faster_layout(self, op: str, dtype: str) -> str:
        return min(LAYOUTS, key=lambda layout: self.seconds(op, dtype, layout))

    def seconds(self, op: str, dtype: str, layout: str) -> float:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        attention = self.torch.nn.functional.scaled_dot_product_attention
        q, k, v, dout = (self.operand(dtype, layout, seed) for seed in range(4))
        # Fails where flash attention would not be used.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            if op == "forward":
                return self.time(lambda: attention(q, k, v, is_causal=True))
            inputs = [x.requires_grad_() for x in (q, k, v)]
            out = attention(*inputs, is_causal=True)
            return self.time(
                lambda: self.torch.autograd.grad(out, inputs, dout, retain_graph=True))

    def time(self, run: typing.Callable) -> float:
        """Median; a first call warms and is not counted."""
        times: list[float] = []
        run()
        while len(times) < LEAST_REPETITIONS or sum(times) < self.options.seconds:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)


def keep_freed_memory() -> None:
    """As `longhaul bench` does: neither side waits for pages of memory that it has just freed."""
    most, trim_threshold, mmap_threshold = 2**31 - 1, -1, -3
    c_library = ctypes.CDLL(None)
    for parameter in (trim_threshold, mmap_threshold):
        assert c_library.mallopt(parameter, most) == 1


def compare(ours: Ours, theirs: Theirs, op: str, dtype: str, rounds: int) -> tuple[float, float]:
    """GFLOP/s of both sides."""
    layout = theirs.faster_layout(op, dtype)
    pairs = [(ours.seconds(op, dtype), theirs.seconds(op, dtype, layout)) for _ in range(rounds)]
    work = flops(op, ours.heads, ours.n, ours.d)
    ours_seconds, theirs_seconds = (statistics.median(side) for side in zip(*pairs))
    return work / ours_seconds / 1e9, work / theirs_seconds / 1e9


def print_row(case: dict, ours: float, theirs: float) -> None:
    print(f"{case['op']:9s} {case['dtype']:5s} {case['d']:4d} {case['n']:6d} {case['heads']:5d} "
          f"{ours:12.1f} {theirs:12.1f} {ours / theirs:7.2f}x", flush=True)


def print_summary(ratios: dict[tuple[str, str], list[float]], as_json: bool) -> None:
    for (op, dtype), values in ratios.items():
        mean, least, aim = common.geometric_mean(values), min(values), AIMS[dtype]
        if as_json:
            print(json.dumps({"bench": "peer", "case": {"op": op, "dtype": dtype}, "value": mean,
                              "unit": "x", "least": least, "aim": aim}), flush=True)
        else:
            print(f"{op} of {dtype}: geometric mean {mean:.2f}x, least {least:.2f}x (aim {aim}x)")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, rounds=5)
    parser.add_argument("--op", type=lambda text: text.split(","), default=list(OPERATIONS),
                        help="default forward,backward")
    parser.add_argument("--d", type=common.number_list, default=[64, 128], help="default 64,128")
    parser.add_argument("--n", type=common.number_list, default=[1024, 4096, 16384],
                        help="default 1024,4096,16384")
    parser.add_argument("--seconds", type=float, default=0.2,
                        help="time each case of a round for so long or longer; default 0.2")
    options = common.parse(parser)
    if not set(options.op) <= set(OPERATIONS):
        parser.error("--op: of forward and backward")
    return options


def main() -> int:
    options = parse_options()
    common.need_pytorch()
    import torch
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if not options.json:
        print(f"# PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
              f"{options.threads} threads\n"
              f"{'op':9s} {'dtype':5s} {'d':>4s} {'n':>6s} {'heads':>5s} {'ours GFLOP/s':>12s} "
              f"{'theirs':>12s} {'ratio':>8s}")
    ratios: dict[tuple[str, str], list[float]] = {}
    shapes = [(n, d, usual_heads(n)) for d in options.d for n in options.n]
    sides = {shape: (Ours(options, *shape), Theirs(torch, options, *shape)) for shape in shapes}
    for dtype in options.dtype:
        for op in options.op:
            for n, d, heads in shapes:
                ours, theirs = compare(*sides[n, d, heads], op, dtype, options.rounds)
                case = {"op": op, "dtype": dtype, "d": d, "n": n, "mask": "causal",
                        "heads": heads, "threads": options.threads}
                ratios.setdefault((op, dtype), []).append(ours / theirs)
                if options.json:
                    common.print_json(case, ours / theirs, ours, theirs, "GFLOP/s")
                else:
                    print_row(case, ours, theirs)
    print_summary(ratios, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
