#!/usr/bin/env python3
"""How fast is causal attention on a GPU beside PyTorch's cuDNN and FLASH attention, and cuBLAS?

usage: python3 benchmarks/peers/attention_gpu.py --program build/cuda/longhaul [--json]

Needs PyTorch with CUDA. Exit status 5 without, 77 without a GPU.

All sides take turns within a shape, and medians of the rounds count. FLOPs are those of unmasked
pairs: 4 d a pair forward, 10 d backward (of autograd's backward alone). Operands are bf16; ours
gets the time of forward and backward kernels alone. The limit is cuBLAS' bf16 product of two random
8192 x 8192 matrices through PyTorch, measured in every round.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import common

BACKENDS = ("cuDNN", "FLASH")
NO_GPU = 77


def milliseconds(torch, call, least=50.0) -> float:
    """Of one call, over so many that they take `least` together."""
    call()
    calls = 1
    while True:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        elapsed = begin.elapsed_time(end)
        if elapsed >= least or calls >= 1000:
            return elapsed / calls
        calls = min(1000, max(calls + 1, int(calls * least / max(elapsed, 1e-3)) + 1))


class Theirs:
    def __init__(self, torch, n: int, d: int, heads: int):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        self.torch, self.kernel = torch, sdpa_kernel
        self.kinds = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FLASH": SDPBackend.FLASH_ATTENTION}
        self.q, self.k, self.v, self.dout = (
            torch.randn(1, heads, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        for x in (self.q, self.k, self.v):
            x.requires_grad_()

    def seconds(self, backend: str, op: str) -> float:
        attention = self.torch.nn.functional.scaled_dot_product_attention
        with self.kernel([self.kinds[backend]]):
            if op == "forward":
                with self.torch.no_grad():
                    return 1e-3 * milliseconds(
                        self.torch, lambda: attention(self.q, self.k, self.v, is_causal=True))
            out = attention(self.q, self.k, self.v, is_causal=True)
            return 1e-3 * milliseconds(self.torch, lambda: self.torch.autograd.grad(
                out, (self.q, self.k, self.v), self.dout, retain_graph=True))


def ours(program: pathlib.Path, op: str, n: int, d: int, heads: int) -> float:
    result = subprocess.run([str(program), "bench", "attention", "--device", "cuda", "--json",
                             "--dtype", "bf16", "--op", op, "--d", str(d), "--n", str(n),
                             "--heads", str(heads), "--mask", "causal", "--seconds", "0.1"],
                            check=True, capture_output=True, text=True)
    return json.loads(result.stdout)["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=common.ROOT / "build/cuda/longhaul")
    parser.add_argument("--n", type=common.number_list, default=[2048, 8192, 16384])
    parser.add_argument("--d", type=common.number_list, default=[64, 128])
    parser.add_argument("--tokens", type=int, default=16384, help="heads x n is about 16 times this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    common.need_pytorch()
    import torch
    if not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU")
        sys.exit(NO_GPU)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    if not options.json:
        print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}, bf16, causal")
        print(f"{'op':9}{'d':>4}{'n':>7}{'heads':>6}{'ours':>9}"
              + "".join(f"{name:>9}" for name in BACKENDS) + f"{'cuBLAS':>9}   TFLOP/s; ratios")
    for op in ("forward", "backward"):
        for d in options.d:
            for n in options.n:
                heads = max(1, options.tokens * 16 // n)
                work = (4 if op == "forward" else 10) * d * heads * n * (n + 1) / 2
                theirs = Theirs(torch, n, d, heads)
                rates: dict[str, list[float]] = {name: [] for name in ("ours", *BACKENDS, "cuBLAS")}
                for _ in range(options.rounds):
                    rates["ours"].append(work / ours(options.program, op, n, d, heads))
                    for name in BACKENDS:
                        rates[name].append(work / theirs.seconds(name, op))
                    product = 1e-3 * milliseconds(torch, lambda: a @ b)
                    rates["cuBLAS"].append(2 * 8192**3 / product)
                median = {name: statistics.median(values) for name, values in rates.items()}
                ratios = {name: median["ours"] / median[name] for name in (*BACKENDS, "cuBLAS")}
                if options.json:
                    print(json.dumps({"bench": "attention beside PyTorch on a GPU",
                                      "case": {"op": op, "dtype": "bf16", "d": d, "n": n,
                                               "heads": heads, "mask": "causal"},
                                      "value": median["ours"] / 1e12, "unit": "TFLOP/s",
                                      **{name: rate / 1e12 for name, rate in median.items()},
                                      "ratios": ratios}), flush=True)
                else:
                    print(f"{op:9}{d:4}{n:7}{heads:6}"
                          + "".join(f"{median[name] / 1e12:9.1f}" for name in median) + "   "
                          + "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
                          flush=True)


if __name__ == "__main__":
    main()
