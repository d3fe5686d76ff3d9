#!/usr/bin/env python3
"""Training under a real mpirun: equal losses, ranks that die, runs that are stopped and go on.

usage: train_mpi_test.py PROGRAM MPIRUN...
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = sys.argv[1]
MPIRUN = sys.argv[2:]
CONFIG = """
model { vocabulary: 16 layers: 2 width: 32 heads: 4 kv_heads: 2 head_dim: 8 mlp_width: 48
        norm_eps: 1e-5 rope_theta: 10000 }
data { path: "copy" sequence_length: 251 validation_fraction: 0.1 }
train { steps: 60 batch_tokens: 502 warmup_steps: 5 run_directory: "run" }
checkpoint { every: 10 keep: 0 }
"""


class Training(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "c.txtpb").write_text(CONFIG)
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
        self.environment["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        subprocess.run([PROGRAM, "data", "synthesize", "--output", "copy", "--documents", "100",
                        "--tokens", "180", "--vocabulary", "16"], cwd=self.folder, check=True,
                       stdout=subprocess.DEVNULL)

    def start(self, ranks, run, *settings):
        """Ranks as processes; ranks 0: one, without a launcher."""
        launcher = [*MPIRUN, "-n", str(ranks)] if ranks else []
        command = [*launcher, PROGRAM, "train", "--config", "c.txtpb",
                   "--set", "train.run_directory=" + run]
        for setting in settings:
            command += ["--set", setting]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)

    def finish(self, process, timeout=120):
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            self.fail("the job hangs: " + out[-2000:] + err[-2000:])
        return process.returncode, out, err

    def train(self, ranks, run, *settings):
        status, out, err = self.finish(self.start(ranks, run, *settings))
        self.assertEqual(status, 0, out + err)
        return self.losses(run)

    def losses(self, run):
        path = self.folder / run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def wait_for_step(self, process, run, step):
        deadline = time.time() + 60
        while time.time() < deadline and process.poll() is None:
            try:
                if max(self.losses(run), default=0) >= step:
                    return
            except json.JSONDecodeError:  # a line that is being written
                pass
            time.sleep(0.01)
        self.fail("step %d was not reached" % step)

    def ranks_of(self, process):
        """Process ids of the ranks that this mpirun has started."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
            except OSError:
                continue
            if words[0] == PROGRAM.encode() and int(parent) == process.pid:
                found.append(int(entry.name))
        return found

    def rank_of(self, pid):
        environment = pathlib.Path("/proc/%d/environ" % pid).read_bytes().split(b"\0")
        prefix = b"OMPI_COMM_WORLD_RANK="
        return next(int(word[len(prefix):]) for word in environment if word.startswith(prefix))

    def test_losses_are_equal_on_any_number_of_processes(self):
        expected = self.train(0, "one", "train.steps=20")
        for ranks in (2, 4):
            losses = self.train(ranks, "on%d" % ranks, "train.steps=20")
            self.assertEqual(sorted(losses), sorted(expected))
            for step, loss in losses.items():
                self.assertAlmostEqual(loss, expected[step], delta=1e-5 * expected[step])
        # Processes and threads as ranks run the same sums in the same order.
        self.finish(subprocess.Popen(
            [PROGRAM, "train", "--config", "c.txtpb", "--ranks", "4", "--set", "train.steps=20",
             "--set", "train.run_directory=threads"], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        self.assertEqual(self.losses("threads"), losses)

    def test_a_rank_that_dies_ends_the_job_and_the_run_goes_on_from_the_checkpoint(self):
        expected = self.train(3, "whole")
        process = self.start(3, "killed")
        self.wait_for_step(process, "killed", 25)
        victims = self.ranks_of(process)
        self.assertEqual(len(victims), 3)
        os.kill(victims[-1], signal.SIGKILL)
        status, _, _ = self.finish(process, timeout=60)
        self.assertNotEqual(status, 0)
        losses = self.train(3, "killed")
        self.assertEqual(losses, expected)  # to the last bit, each step once

    def test_a_rank_that_hangs_is_named_within_the_deadline(self):
        process = self.start(3, "hung", "parallel.timeout_seconds=2")
        self.wait_for_step(process, "hung", 5)
        victim = next(pid for pid in self.ranks_of(process) if self.rank_of(pid) == 1)
        os.kill(victim, signal.SIGSTOP)
        status, out, err = self.finish(process, timeout=60)
        self.assertEqual(status, 6, out + err)
        lines = [line for line in err.splitlines() if line.startswith("longhaul: error: ")]
        self.assertGreaterEqual(len(lines), 1, err)
        # Another rank may be missing, too: one that waits for rank 1 elsewhere.
        self.assertRegex(lines[0], r"rank [02] .* at step \d+ .* (ranks? |and )1( and 2)?\b")
        self.assertGreater(max(self.losses("hung")), 0)

    def test_kill_at_any_time_leaves_a_run_that_goes_on(self):
        expected = self.train(2, "whole", "checkpoint.every=1")
        # The job is killed as a whole, again and again, mostly within saves.
        for attempt in range(6):
            process = self.start(2, "killed", "checkpoint.every=1")
            done = max(self.losses("killed"), default=0)
            if done < 50:
                self.wait_for_step(process, "killed", done + 3)
                time.sleep(0.003 * attempt)
            ranks = self.ranks_of(process)
            os.killpg(process.pid, signal.SIGKILL)
            for rank in ranks:
                try:
                    os.kill(rank, signal.SIGKILL)
                except ProcessLookupError:  # its launcher's end was its own
                    pass
            process.communicate()
        losses = self.train(2, "killed", "checkpoint.every=1")
        self.assertEqual(losses, expected)

    def test_a_signal_saves_and_asks_to_be_started_again(self):
        expected = self.train(2, "whole")
        process = self.start(2, "stopped")
        self.wait_for_step(process, "stopped", 13)
        for rank in self.ranks_of(process)[:1]:  # one rank is enough
            os.kill(rank, signal.SIGUSR1)
        status, out, err = self.finish(process, timeout=60)
        self.assertEqual(status, 75, out + err)
        self.assertEqual(err.count("longhaul: "), 1, err)
        self.assertIn("the checkpoint is saved", err)
        stopped = max(self.losses("stopped"))
        self.assertLess(stopped, 60)
        self.assertTrue((self.folder / "stopped/checkpoints" / ("step-%08d" % stopped)).is_dir())
        self.assertEqual(self.train(2, "stopped"), expected)

    # Core attention disaggregation: trainers first, then servers.
    SHARED = ("train.dtype=F64", "train.batch_tokens=1506", "train.steps=6",
              "train.validation_samples=4")

    def servers(self, replicas, count):
        return ("parallel.strategy=disaggregated", "parallel.data=%d" % replicas,
                "parallel.servers=%d" % count)

    def test_dedicated_servers_train_as_colocated_ranks(self):
        expected = self.train(4, "colocated", "parallel.data=2", *self.SHARED)
        for replicas, count in ((3, 1), (2, 2), (2, 0)):
            run = "%d+%d" % (replicas, count)
            losses = self.train(4, run, *self.SHARED, *self.servers(replicas, count))
            self.assertEqual(sorted(losses), sorted(expected))
            for step, loss in losses.items():
                self.assertAlmostEqual(loss, expected[step], delta=1e-9 * expected[step])
        # Threads as ranks run the same schedule.
        self.finish(subprocess.Popen(
            [PROGRAM, "train", "--config", "c.txtpb", "--ranks", "4"]
            + [word for setting in (*self.SHARED, *self.servers(3, 1), "train.run_directory=threads")
               for word in ("--set", setting)], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        self.assertEqual(self.losses("threads"), self.losses("3+1"))

    def test_check_and_bench_know_servers(self):
        settings = ["--set", "train.batch_tokens=1506"]
        for setting in self.servers(3, 1):
            settings += ["--set", setting]
        for command in (["check"], ["bench", "train", "--steps", "2"]):
            process = subprocess.Popen(
                [*MPIRUN, "-n", "4", PROGRAM, *command, "--config", "c.txtpb", *settings],
                cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True)
            status, out, err = self.finish(process)
            self.assertEqual(status, 0, out + err)
            self.assertIn("disaggregated", out)

    def victim(self, process, rank):
        return next(pid for pid in self.ranks_of(process) if self.rank_of(pid) == rank)

    def test_a_server_that_dies_ends_the_job_and_the_run_goes_on_with_fewer(self):
        settings = ("train.batch_tokens=1506", "train.dtype=F64")
        expected = self.train(3, "whole", "parallel.data=3", *settings)
        process = self.start(4, "killed", *settings, *self.servers(3, 1))
        self.wait_for_step(process, "killed", 25)
        os.kill(self.victim(process, 3), signal.SIGKILL)
        status, _, _ = self.finish(process, timeout=60)
        self.assertNotEqual(status, 0)
        losses = self.train(3, "killed", "parallel.data=3", *settings)
        self.assertEqual(sorted(losses), sorted(expected))
        for step, loss in losses.items():
            self.assertAlmostEqual(loss, expected[step], delta=1e-6 * expected[step])

    def test_a_server_that_hangs_is_named_within_the_deadline(self):
        process = self.start(4, "hung", "parallel.timeout_seconds=2", "train.batch_tokens=1506",
                             *self.servers(3, 1))
        self.wait_for_step(process, "hung", 5)
        os.kill(self.victim(process, 3), signal.SIGSTOP)
        status, out, err = self.finish(process, timeout=60)
        self.assertEqual(status, 6, out + err)
        lines = [line for line in err.splitlines() if line.startswith("longhaul: error: ")]
        self.assertGreaterEqual(len(lines), 1, err)
        self.assertRegex(lines[0], r"rank [012] .* at step \d+ .* (ranks? |and )(\d, )*3\b")

    def test_a_trainer_that_hangs_ends_servers_too(self):
        process = self.start(4, "hung", "parallel.timeout_seconds=2", "train.batch_tokens=1506",
                             *self.servers(3, 1))
        self.wait_for_step(process, "hung", 5)
        os.kill(self.victim(process, 1), signal.SIGSTOP)
        status, out, err = self.finish(process, timeout=60)
        self.assertEqual(status, 6, out + err)

    def test_a_signal_to_a_server_saves(self):
        settings = ("train.batch_tokens=1004", *self.servers(2, 1))
        expected = self.train(3, "whole", *settings)
        process = self.start(3, "stopped", *settings)
        self.wait_for_step(process, "stopped", 13)
        os.kill(self.victim(process, 2), signal.SIGUSR1)
        status, out, err = self.finish(process, timeout=60)
        self.assertEqual(status, 75, out + err)
        self.assertEqual(err.count("longhaul: "), 1, err)
        self.assertLess(max(self.losses("stopped")), 60)
        self.assertEqual(self.train(3, "stopped", *settings), expected)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
