#!/usr/bin/env python3
"""Models of transformers, imported, have its losses and gradients, and exported, its logits.

Skipped where transformers is not installed.

usage: huggingface_parity.py PROGRAM IMPORTED_GRADIENTS
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    import torch
    import transformers
except ImportError as missing:
    print(f"SKIPPED: {missing}; install torch and transformers to compare with them")
    sys.exit(77)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
PROGRAM, GRADIENTS = sys.argv[1:3]
LENGTH = 48
SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
             attention_dropout=0.0, tie_word_embeddings=False)
CASES = {
    "llama": dict(model_type="llama"),
    "llama, tied, biases": dict(model_type="llama", attention_bias=True, tie_word_embeddings=True),
    "llama, wide heads": dict(model_type="llama", head_dim=16, rms_norm_eps=1e-3),
    "llama, linear": dict(model_type="llama", rope_scaling=dict(rope_type="linear", factor=3.0)),
    "llama, dynamic": dict(model_type="llama", rope_theta=100.0,
                           rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "llama, llama3": dict(model_type="llama", rope_theta=500.0,
                          rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                            high_freq_factor=4.0,
                                            original_max_position_embeddings=16)),
    "mistral": dict(model_type="mistral", sliding_window=7),
    "mistral, no window": dict(model_type="mistral", sliding_window=None, head_dim=12),
    "qwen2": dict(model_type="qwen2", rope_theta=1e6),
    "qwen2, window": dict(model_type="qwen2", use_sliding_window=True, sliding_window=9,
                          max_window_layers=0),
    "qwen2, yarn": dict(model_type="qwen2",
                        rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=2, beta_slow=0.5,
                                          original_max_position_embeddings=16)),
    "llama, yarn, mscale": dict(model_type="llama",
                                rope_scaling=dict(rope_type="yarn", factor=3.0, mscale=0.7,
                                                  mscale_all_dim=1.2, truncate=False, beta_fast=3,
                                                  original_max_position_embeddings=16)),
    "qwen3": dict(model_type="qwen3", head_dim=16, tie_word_embeddings=True),
    "qwen3, biases": dict(model_type="qwen3", head_dim=8, attention_bias=True),
}


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(done.stderr.decode())
    return done.stdout.decode()


def scattered_model(config):
    """Random, with biases and norms that are not 0 and 1."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


class Parity(unittest.TestCase):
    def check(self, folder, settings):
        settings = dict(SIZES, **settings)
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = scattered_model(config)
        model.save_pretrained(folder / "theirs")
        tokens = torch.randint(0, config.vocab_size, (1, LENGTH),
                               generator=torch.Generator().manual_seed(2))
        print(run(PROGRAM, "checkpoint", "import", folder / "theirs", "--output", folder / "run"),
              end="")
        ours = json.loads(run(GRADIENTS, folder / "run", *tokens[0].tolist()))

        logits = model(tokens).logits.detach()
        model(tokens, labels=tokens).loss.backward()
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item()
        self.assertLess(abs(ours["loss"] - loss), 1e-5 * abs(loss))
        names = set()
        for name, parameter in model.named_parameters():
            names.add(name)
            gradient = torch.tensor(ours["gradients"][name]).reshape(parameter.shape)
            scale = parameter.grad.abs().max().item()
            self.assertLess((gradient - parameter.grad).abs().max().item(), 1e-4 * scale + 1e-7,
                            name)
        self.assertEqual(names, set(ours["gradients"]))

        run(PROGRAM, "checkpoint", "export", folder / "run", folder / "back", "--file-bytes", 9000)
        again = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "back", attn_implementation="eager").eval()
        self.assertEqual(again.config.model_type, config.model_type)
        self.assertEqual((again(tokens).logits.detach() - logits).abs().max().item(), 0)


def add_case(name, settings):
    def test(self):
        with tempfile.TemporaryDirectory() as folder:
            self.check(pathlib.Path(folder), settings)
    setattr(Parity, "test_" + name, test)


for case, its_settings in CASES.items():
    add_case(case, its_settings)

if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
