"""How training and sampling scale over the GPUs of one host.

    python benchmarks/scaling.py programs --devices 1 2 4 8 --out DIR
    python benchmarks/scaling.py training --devices 1 4 --records RECORDS --out DIR
    python benchmarks/scaling.py programs --tiny --devices 1 2 4 8 --out DIR     # rehearsal on simulated CPU devices

`programs`: the training step of Stable Diffusion 1.5's size (32 pictures a device; replicated, and
zero and fsdp on all devices) and the sampler (8 and 32 pictures a device), each in one process for
all devices and, on all devices, in one process for each. Every GPU is a
lane in which one program after the other is compiled, and tuned undisturbed, into a compile cache.
Then all programs are loaded or compiled side by side and measured one after the other. The share of
collectives comes from a trace of the training step.

`training`: `caphuman train --config mini` on one device and on all; stopped by SIGTERM on all
devices and resumed on half of them; with one process for each device, of which one is killed with
SIGKILL in mid-step: how long do the others take to end, and with which exit codes?

Each part takes less than ten minutes on 4 H100s. Results: DIR/scaling_PART.json and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN_BATCH, SAMPLE_BATCHES = 32, (8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("programs", "training", "worker"))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=Path, help="records to train mini on")
    parser.add_argument("--steps", type=int, default=400, help="of mini")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes on a CPU")
    parser.add_argument(
        "--at-once", type=int, default=99, help="programs that compile at the same time"
    )
    parser.add_argument("--seconds", type=float, default=560, help="limit of the part")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # of a worker, JSON
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "worker":
        return work(json.loads(args.job), args)
    rows = {"programs": programs, "training": training}[args.part](args)
    path = args.out / f"scaling_{args.part}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print({"programs": program_table, "training": training_table}[args.part](rows))


# Programs: workers that compile side by side and are measured in turn.


def programs(args) -> list[dict]:
    """A row for every program; see the module."""
    most = max(args.devices)
    jobs = [{"what": "train", "devices": n, "mode": "replicated"} for n in args.devices]
    jobs += [{"what": "train", "devices": most, "mode": mode} for mode in ("zero", "fsdp")]
    jobs += [
        {"what": "sample", "devices": n, "batch": batch}
        for n in args.devices
        for batch in SAMPLE_BATCHES
    ]
    if not args.tiny:  # simulated devices belong to one process
        jobs.append({"what": "train", "devices": most, "mode": "replicated", "processes": most})
        jobs.append({"what": "sample", "devices": most, "batch": 8, "processes": most})
    turns = args.out / "turns"
    turns.mkdir(exist_ok=True)
    for old in turns.iterdir():
        old.unlink()
    deadline = time.monotonic() + args.seconds
    jobs = [job | {"name": f"{i:02d}"} for i, job in enumerate(jobs)]
    alone = [job for job in jobs if "processes" not in job]
    if not args.tiny:
        began = time.monotonic()
        # Training steps over several GPUs were not found in the cache again (jax 0.11.2).
        kept = [job for job in alone if job["what"] == "sample" or job["devices"] == 1]
        compile_in_lanes(kept, args, turns, lanes=most)
        print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)
    rows = []
    for first in range(0, len(alone), args.at_once):
        rows += measured(alone[first : first + args.at_once], args, turns, deadline)
    for job in jobs[len(alone) :]:
        rows += measured([job], args, turns, deadline)
    return rows


def compile_in_lanes(jobs: list[dict], args, turns: Path, lanes: int) -> None:
    """Compiles every job into the cache; in a lane one after the other, on a GPU of the lane's own
    (the first that the job sees).
    """
    waiting = sorted(jobs, key=lambda job: (-job["devices"], job["name"]))
    lock = threading.Lock()

    def work_off(lane: int) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                job = waiting.pop(0)
            for process in start(job | {"compile_only": True}, args, turns, lane):
                process.wait()

    threads = [threading.Thread(target=work_off, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measured(jobs: list[dict], args, turns: Path, deadline: float) -> list[dict]:
    """Rows of jobs that compile side by side and are then measured one after the other."""
    workers, rows, began = [start(job, args, turns) for job in jobs], [], time.monotonic()
    try:
        for job, group in zip(jobs, workers):  # all have compiled, or ended
            for number, process in enumerate(group):
                ready = turns / f"ready-{job['name']}-{number}"
                while not ready.exists() and process.poll() is None:
                    if time.monotonic() > deadline - 120:
                        break
                    time.sleep(0.2)
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        for job, group in zip(jobs, workers):
            (turns / f"go-{job['name']}").touch()
            for process in group:
                try:
                    process.wait(max(1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
            paths = [turns / f"result-{job['name']}-{number}.json" for number in range(len(group))]
            found = [json.loads(path.read_text()) for path in paths if path.exists()]
            rows.append((joined(found) if len(found) == len(group) else {"failed": True}) | job)
            print(json.dumps(rows[-1]), flush=True)
    finally:
        for process in sum(workers, []):
            process.kill()
    return rows


def start(job: dict, args, turns: Path, lane: int = 0) -> list[subprocess.Popen]:
    """The processes of a job, each with the devices that it may see, that of the lane first."""
    count = job.get("processes", 1)
    port, group = free_port(), []
    for number in range(count):
        environment = dict(os.environ)
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a card
        if args.tiny:
            environment["JAX_PLATFORMS"] = "cpu"
            flags = f"--xla_force_host_platform_device_count={job['devices']}"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}"
        else:
            most = max(args.devices)
            seen = [(lane + i) % most for i in range(job["devices"])] if count == 1 else [number]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seen))
            environment["JAX_COMPILATION_CACHE_DIR"] = str(args.out / "cache")
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
        given = job | {"number": number, "port": port, "turns": str(turns)}
        command = [sys.executable, __file__, "worker", "--out", str(args.out)]
        command += ["--job", json.dumps(given)] + (["--tiny"] if args.tiny else [])
        log = (args.out / f"log-{job['name']}-{number}.txt").open("a")
        group.append(
            subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        )
    return group


def joined(found: list[dict]) -> dict:
    """One row of the rows of all processes of a job: rates of independent processes add up."""
    row = dict(found[0])
    if len(found) > 1 and row.pop("independent", False):
        row["pictures_a_second"] = sum(one["pictures_a_second"] for one in found)
    row.pop("independent", None)
    return row


def work(job: dict, args) -> None:
    """A worker: compiles, says so, waits for its turn, measures and writes its result."""
    turns, mark = Path(job["turns"]), f"{job['name']}-{job['number']}"

    def ready() -> None:
        if job.get("compile_only"):
            sys.stdout.flush()
            os._exit(0)
        (turns / f"ready-{mark}").touch()
        while not (turns / f"go-{job['name']}").exists():
            time.sleep(0.05)

    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    found = {"train": work_train, "sample": work_sample}[job["what"]](job, args, ready)
    partial = turns / f"partial-{mark}.json"
    partial.write_text(json.dumps(found))
    partial.rename(turns / f"result-{mark}.json")


def work_train(job: dict, args, ready) -> dict:
    if job.get("processes", 1) > 1:
        import jax

        address = f"localhost:{job['port']}"
        jax.distributed.initialize(address, job["processes"], job["number"])
    import kernels
    import train_step

    trace = args.out / f"trace-{job['name']}-{job['number']}"
    options = train_step.parser().parse_args(
        ["--steps", "20", "--size", "tiny" if args.tiny else "full", "--profile", str(trace)]
    )
    batch = 4 if args.tiny else TRAIN_BATCH
    base = train_step.random_base(train_step.MODELS[options.size])
    row = train_step.measure(
        train_step.MODELS[options.size],
        base,
        options,
        job["devices"],
        job["mode"],
        "none",
        "auto",
        batch,
        ready,
    )
    row["pictures_a_second"] = row.pop("pictures_per_s", None)
    shares = kernels.collectives(trace, per=3)
    return row | ({} if shares is None else {"collectives": shares})


def work_sample(job: dict, args, ready) -> dict:
    import sampler

    processes = job.get("processes", 1)
    options = ["--model", "sd15", "--devices", str(job["devices"] // processes)]
    options += [
        "--batch",
        str(job["batch"]),
        "--size",
        "512",
        "--guidance-scale",
        "7",
        "--repeats",
        "4",
    ]
    if args.tiny:
        options = ["--model", "mini", "--size", "64", "--steps", "2", "--repeats", "1"]
    row = sampler.run(options, ready)[0]
    return row | ({"independent": True} if processes > 1 else {})


def program_table(rows: list[dict]) -> str:
    """Markdown; "of linear" is against one device with the same batch a device."""
    one = {
        (row["what"], row.get("batch")): row.get("pictures_a_second")
        for row in rows
        if row["devices"] == 1
    }
    lines = [
        "| program | devices | processes | pictures/s | of linear | collectives |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate, single = row.get("pictures_a_second"), one.get((row["what"], row.get("batch")))
        batch = row.get("batch", TRAIN_BATCH)
        name = f"{row['what']}, {batch} a device" + (f", {row['mode']}" if "mode" in row else "")
        linear = f"{rate / single / row['devices']:.1%}" if rate and single else ""
        share = row.get("collectives")
        share = f"{share['exposed_share']:.1%} not hidden" if share else ""
        told = f"{rate:.2f}" if rate else "failed"
        processes = row.get("processes", 1)
        lines.append(f"| {name} | {row['devices']} | {processes} | {told} | {linear} | {share} |")
    return "\n".join(lines)


# Training of mini: the command itself, as a user starts it.


def training(args) -> dict:
    """Speed by metrics.jsonl, a resumed run on half of the devices, a process killed."""
    most = max(args.devices)
    deadline = time.monotonic() + args.seconds
    left = lambda: max(5.0, deadline - time.monotonic())
    found: dict = {"devices": most}

    whole = Mini(args, "all", range(most), steps=args.steps + 200)
    whole.until_step(args.steps, left())
    began = time.monotonic()
    whole.processes[0].send_signal(signal.SIGTERM)
    found["sigterm_exit_code"] = whole.wait(left())
    found["sigterm_seconds"] = time.monotonic() - began
    found["one_process"] = whole.speed()

    many = Mini(args, "processes", range(most), steps=args.steps + 200, each=True)
    many.until_step(args.steps, left())
    began = time.monotonic()
    many.processes[-1].send_signal(signal.SIGKILL)
    codes = []
    for process in many.processes[:-1]:
        try:
            codes.append(process.wait(min(180, left())))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(None)
    found["sigkill_seconds"] = time.monotonic() - began
    found["sigkill_exit_codes"] = codes
    found["process_each"] = many.speed()

    half = Mini(args, "all", range(most // 2), steps=args.steps + 200)  # the same work folder
    single = Mini(args, "single", [most - 1], steps=args.steps)
    found["resumed_on_half_exit_code"] = half.wait(left())
    found["half"] = half.speed()
    found["half"]["resumed_at"] = next(
        (line for line in half.log().splitlines() if "resumed" in line), None
    )
    single.until_step(args.steps, left())
    found["one_device"] = single.speed()
    single.kill()
    return found


class Mini:
    """`caphuman train --config mini` in one process, or `each` device in a process of its own."""

    def __init__(self, args, name: str, devices, steps: int, each: bool = False):
        self.workdir = args.out / f"mini-{name}"
        self.devices, port = list(devices), free_port()
        command = [sys.executable, "-m", "caphuman_jax.cli", "train", "--config", "mini"]
        command += ["--workdir", str(self.workdir), f"--config.data={args.records}"]
        command += [f"--config.training.steps={steps}", "--config.autoencoder.steps=20"]
        command += ["--config.loop.log_every=20", "--config.evaluators.held_out.every=0"]
        command += ["--config.evaluators.previews.every=0", "--config.loop.best="]
        if args.tiny:
            command += ["--config.training.batch_size=16", "--config.autoencoder.batch_size=8"]
        self.processes, self.logs = [], []
        self.metrics = self.workdir / "metrics.jsonl"
        self.before = len(self.lines())
        for number in range(len(self.devices) if each else 1):
            environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
            environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
            seen = [self.devices[number]] if each else self.devices
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seen))
            if args.tiny:
                environment["JAX_PLATFORMS"] = "cpu"
                environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={len(seen)}"
            more = []
            if each:
                more = ["--coordinator", f"localhost:{port}", "--process-id", str(number)]
                more += ["--process-count", str(len(self.devices))]
            self.logs.append(args.out / f"log-mini-{name}-{len(self.devices)}-{number}.txt")
            with self.logs[-1].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        command + more,
                        env=environment,
                        cwd=ROOT,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def lines(self) -> list[dict]:
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines() if line]

    def until_step(self, step: int, seconds: float) -> None:
        """Waits until a step is logged, or the run has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.processes[0].poll() is None:
            if any(line.get("step", 0) >= step for line in self.lines()):
                return
            time.sleep(0.05)

    def wait(self, seconds: float) -> int | None:
        try:
            return self.processes[0].wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def speed(self) -> dict:
        """Pictures a second by the lines that this start wrote, the first 100 steps left out."""
        rates = [line for line in self.lines()[self.before :] if RATE in line]
        first = rates[0]["step"] if rates else 0
        later = sorted(line[RATE] for line in rates if line["step"] >= first + 100)
        return {
            "devices": len(self.devices),
            "pictures_a_second": later[len(later) // 2] if later else None,
            "last_step": rates[-1]["step"] if rates else None,
        }

    def log(self) -> str:
        return self.logs[0].read_text()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


RATE = "samples_per_second"
"""What metrics.jsonl calls the speed."""


def training_table(found: dict) -> str:
    """Markdown."""
    one = found["one_device"]["pictures_a_second"]
    lines = [
        "| mini, batch 512 | devices | pictures/s | of linear |",
        "|---|---|---|---|",
    ]
    for name in ("one_device", "half", "one_process", "process_each"):
        row = found[name]
        rate = row["pictures_a_second"]
        linear = f"{rate / one / row['devices']:.1%}" if rate and one else ""
        told = f"{rate:.0f}" if rate else "not measured"
        lines.append(f"| {name.replace('_', ' ')} | {row['devices']} | {told} | {linear} |")
    rest = {name: value for name, value in found.items() if not isinstance(value, dict)}
    return "\n".join([*lines, json.dumps(rest), json.dumps(found["half"])])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
