"""The training step's work in PyTorch, for runs beside benchmarks/train_step.py: diffusers' UNet
and ControlNet at the size of Stable Diffusion 1.5.

    python benchmarks/torch_train.py [--batch 32 64] [--mode max-autotune] [--steps 10] [--json FILE]
    python benchmarks/torch_train.py --tiny --device cpu --mode none --size 64 --batch 2 --steps 2      a rehearsal

The UNet is frozen, in bfloat16. A ControlNet with hints of 9 channels and 258 identity tokens
stands for CapFace; it and the projection of the tokens are trained, in float32 with products in
bfloat16. As in the JAX step, the autoencoder's moments, the text's encoding and the image tokens
are stored, the noise and the timesteps are drawn in each step, and AdamW takes part in it. By the
means of PyTorch: channels-last, autocast, torch.compile of the loss and its gradients (with CUDA
graphs where the mode has them), fused attention, fused AdamW. Random weights and inputs, on the
device already.

Prints, for each batch size, seconds a step (median, each waited for; and of steps that are not
waited for) and pictures a second. --mode is torch.compile's; --library-products leaves products and
convolutions to the libraries, which spares most of the minutes that `max-autotune` takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch_sampler import MODES, how

IMAGE_TOKENS, IMAGE_WIDTH, RECOGNITION_WIDTH, HINT_CHANNELS = 257, 1024, 512, 9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", default="max-autotune", choices=MODES)
    parser.add_argument("--library-products", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="narrow networks, to see that it runs")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        torch.backends.cudnn.benchmark
    ) = True
    if args.library_products:
        torch._inductor.config.max_autotune_gemm_backends = "ATEN"
        torch._inductor.config.max_autotune_conv_backends = "ATEN"
    results = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "mode": args.mode,
        "library_products": args.library_products,
        "size": args.size,
        "lines": [],
    }
    print(json.dumps({key: value for key, value in results.items() if key != "lines"}), flush=True)
    work = Training(args)
    for batch in args.batch:
        results["lines"].append(measure(work, batch, args))
        print(json.dumps(results["lines"][-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")


class Training(torch.nn.Module):
    """The networks, the optimizer and the loss."""

    def __init__(self, args):
        super().__init__()
        self.args = args
        widths, heads, width = (
            ((32, 64, 64, 64), 2, 32) if args.tiny else ((320, 640, 1280, 1280), 8, 768)
        )
        self.text_width = width
        shared = {
            "in_channels": 4,
            "layers_per_block": 2,
            "block_out_channels": widths,
            "cross_attention_dim": width,
            "attention_head_dim": heads,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        }
        unet = UNet2DConditionModel(
            **shared, out_channels=4, up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        )
        place = lambda network, dtype: network.to(args.device, dtype).to(
            memory_format=torch.channels_last
        )
        self.unet = place(unet, torch.bfloat16).requires_grad_(False)
        self.control = place(
            ControlNetModel(**shared, conditioning_channels=HINT_CHANNELS), torch.float32
        )
        self.project = torch.nn.ModuleList(
            torch.nn.Linear(before, width) for before in (RECOGNITION_WIDTH, IMAGE_WIDTH)
        ).to(args.device)
        trained = [*self.control.parameters(), *self.project.parameters()]
        self.trained = sum(leaf.numel() for leaf in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=args.device == "cuda")
        self.compiled = (
            self._loss
            if args.mode == "none"
            else torch.compile(self._loss, fullgraph=True, dynamic=False, **how(args.mode))
        )
        levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        self.register_buffer("levels", torch.tensor(levels).float().to(args.device))

    def inputs(self, batch):
        """Moments of the latents, text, recognition vectors, image tokens, hints."""
        make = lambda *shape: torch.randn(*shape, device=self.args.device, dtype=torch.bfloat16)
        last = lambda x: x.contiguous(memory_format=torch.channels_last)
        side = self.args.size // 8
        return (
            last(make(batch, 8, side, side)),
            make(batch, 77, self.text_width),
            make(batch, RECOGNITION_WIDTH),
            make(batch, IMAGE_TOKENS, IMAGE_WIDTH),
            last(make(batch, HINT_CHANNELS, self.args.size, self.args.size)),
        )

    def __call__(self, *inputs):
        """One step; its loss, on the device."""
        torch.compiler.cudagraph_mark_step_begin()
        loss = self.compiled(*inputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()

    def _loss(self, moments, text, vectors, tokens, hints):
        mean, log_variance = moments.float().chunk(2, 1)
        latents = 0.18215 * (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
        times = torch.randint(1000, (latents.shape[0],), device=latents.device)
        level = self.levels[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (level**0.5 * latents + (1 - level) ** 0.5 * noise).bfloat16()
        with torch.autocast(self.args.device, torch.bfloat16):
            globally, locally = self.project
            identity = torch.cat([globally(vectors)[:, None], locally(tokens)], 1)
            down, middle = self.control(noisy, times, identity, hints, return_dict=False)
            made = self.unet(
                noisy,
                times,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        return torch.nn.functional.mse_loss(made.float(), noise)


def measure(work, batch, args) -> dict:
    """Median seconds a step, each waited for; and a run of steps that are not."""
    inputs, times = work.inputs(batch), []
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work(*inputs)
    wait()
    first = time.perf_counter() - started
    for _ in range(3):
        work(*inputs)
    for _ in range(args.steps):
        wait()
        started = time.perf_counter()
        work(*inputs)
        wait()
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(args.steps):
        loss = work(*inputs)
    wait()
    running = (time.perf_counter() - started) / args.steps
    line = {
        "batch": batch,
        "trained_parameters": work.trained,
        "first_s": round(first, 2),
        "median_s": round(statistics.median(times), 4),
        "range_s": [round(min(times), 4), round(max(times), 4)],
        "running_s": round(running, 4),
        "pictures_a_second": round(batch / running, 2),
        "loss": round(loss.item(), 4),
    }
    if args.device == "cuda":
        line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return line


if __name__ == "__main__":
    main()
