#!/usr/bin/env python3
"""One PyTorch process of train_step.py: training steps of the Llama model, eager, on one machine.

usage: pytorch_llama.py MODEL_JSON DTYPE TOKENS THREADS STEPS

As a PyTorch user would write it, with what is fastest there: flash attention, fused AdamW, one
document of random tokens a step, gradients clipped to norm 1. bf16: weights, activations and
gradients in bf16, an f32 master copy for AdamW and its moments, as Longhaul keeps them.
Prints one JSON object: tokens_per_second (median of STEPS, after one that is not counted),
parameters, first_loss, resident_bytes (before the model is made), version.
"""
import json
import resource
import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu


def rope_table(tokens: int, head_dim: int, theta: float,
               dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, sizes: dict):
        super().__init__()
        width, self.head_dim = sizes["width"], sizes["head_dim"]
        q, kv = sizes["heads"] * self.head_dim, sizes["kv_heads"] * self.head_dim
        self.norm1 = nn.RMSNorm(width, eps=sizes["norm_eps"])
        self.norm2 = nn.RMSNorm(width, eps=sizes["norm_eps"])
        self.wq, self.wk = nn.Linear(width, q, bias=False), nn.Linear(width, kv, bias=False)
        self.wv, self.wo = nn.Linear(width, kv, bias=False), nn.Linear(q, width, bias=False)
        self.gate = nn.Linear(width, sizes["mlp_width"], bias=False)
        self.up = nn.Linear(width, sizes["mlp_width"], bias=False)
        self.down = nn.Linear(sizes["mlp_width"], width, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[1, N, H*D] -> [1, H, N, D]"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norm1(x)
        q = rope(self.heads(self.wq(normed)), cos, sin)
        k = rope(self.heads(self.wk(normed)), cos, sin)
        out = scaled_dot_product_attention(q, k, self.heads(self.wv(normed)), is_causal=True,
                                           enable_gqa=q.shape[1] != k.shape[1])
        x = x + self.wo(out.transpose(1, 2).flatten(2))
        normed = self.norm2(x)
        return x + self.down(silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    def __init__(self, sizes: dict):
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes["vocabulary"], sizes["width"])
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes["layers"]))
        self.norm = nn.RMSNorm(sizes["width"], eps=sizes["norm_eps"])
        self.output = nn.Linear(sizes["width"], sizes["vocabulary"], bias=False)
        if sizes["tied_embeddings"]:
            self.output.weight = self.embedding.weight
        self.initialize()

    def initialize(self) -> None:
        """As model/llama.cc and model/llama_block.cc do."""
        inner = (2 / (5 * self.sizes["width"])) ** 0.5
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            deviation = (0.02 if name in ("embedding.weight", "output.weight") else
                         inner / (2 * self.sizes["layers"]) ** 0.5
                         if name.endswith(("wo.weight", "down.weight")) else inner)
            nn.init.normal_(weight, std=deviation)

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = rope_table(tokens.shape[1], self.sizes["head_dim"], self.sizes["rope_theta"],
                              self.embedding.weight.dtype)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.output(self.norm(x))


class Optimizer:
    """AdamW on f32 parameters: the model's own, or a master copy of them."""

    def __init__(self, model: nn.Module):
        self.weights = list(model.parameters())
        self.own = self.weights[0].dtype == torch.float32
        self.masters = self.weights if self.own else [w.detach().float() for w in self.weights]
        groups = [{"params": [m for m in self.masters if m.dim() >= 2], "weight_decay": 0.1},
                  {"params": [m for m in self.masters if m.dim() < 2], "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def step(self) -> None:
        if not self.own:
            for master, weight in zip(self.masters, self.weights):
                master.grad, weight.grad = weight.grad.float(), None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if not self.own:
            for master, weight in zip(self.masters, self.weights):
                weight.copy_(master)


def step(model: Llama, optimizer: Optimizer, tokens: Tensor) -> float:
    """The loss before the step."""
    logits = model(tokens[:, :-1])
    loss = cross_entropy(logits.flatten(0, 1).float(), tokens[0, 1:])
    loss.backward()
    optimizer.step()
    return loss.item()


def main() -> None:
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    sizes, dtype = json.loads(sys.argv[1]), sys.argv[2]
    length, threads, steps = (int(word) for word in sys.argv[3:])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = Llama(sizes).to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    optimizer = Optimizer(model)
    tokens = torch.randint(sizes["vocabulary"], (1, length + 1))
    times, losses = [], []
    # Fails where flash attention would not be used.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for _ in range(steps + 1):
            begin = time.perf_counter()
            losses.append(step(model, optimizer, tokens))
            times.append(time.perf_counter() - begin)
    print(json.dumps({"tokens_per_second": length / statistics.median(times[1:]),
                      "parameters": sum(weight.numel() for weight in model.parameters()),
                      "first_loss": losses[0], "resident_bytes": resident,
                      "version": torch.__version__}))


if __name__ == "__main__":
    main()
