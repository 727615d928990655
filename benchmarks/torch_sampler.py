"""The sampler's work in PyTorch, for runs beside benchmarks/sampler.py: diffusers' UNet and
ControlNet at the size of Stable Diffusion 1.5.

    python benchmarks/torch_sampler.py [--batch 1 8 16] [--size 512] [--steps 20] [--mode max-autotune] [--repeats 5] [--json FILE]
    python benchmarks/torch_sampler.py --tiny --device cpu --dtype float32 --size 64 --steps 2      a rehearsal

A ControlNet with hints of 9 channels and 258 identity tokens stands for CapFace; it is run once for
both halves of guidance, the hints are encoded once, keys and values of text and identity tokens are
computed once, and the autoencoder decodes the end: what the JAX sampler computes, by the means of
PyTorch: channels-last, bfloat16, torch.compile on a whole step, CUDA graphs, fused attention. Random
weights; DDIM with guidance 7. Medians after two warm-up runs.

--mode is torch.compile's. `max-autotune` tries Triton's products, convolutions and other kernels,
which takes more than ten minutes. With --library-products, products and convolutions are
libraries', and the rest is tuned. `tuned-products` tries Triton's products beside cuBLAS's, with
CUDA graphs, and nothing else.
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
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

IDENTITY_TOKENS, HINT_CHANNELS, GUIDANCE = 258, 9, 7.0
MODES = ("none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
MODES += ("tuned-products",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--mode", default="max-autotune", choices=MODES)
    parser.add_argument("--library-products", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="narrow networks, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        torch.backends.cudnn.benchmark
    ) = True
    if args.library_products:
        torch._inductor.config.max_autotune_gemm_backends = "ATEN"
        torch._inductor.config.max_autotune_conv_backends = "ATEN"
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    results = {
        "device": name,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "mode": args.mode,
        "library_products": args.library_products,
        "dtype": args.dtype,
        "size": args.size,
        "steps": args.steps,
        "lines": [],
    }
    print(json.dumps({key: value for key, value in results.items() if key != "lines"}), flush=True)
    with torch.no_grad():
        work = Sampler(args)
        for batch in args.batch:
            results["lines"].append(measure(work, batch, args))
            print(json.dumps(results["lines"][-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


class Sampler:
    """The three networks, and pictures from random inputs."""

    def __init__(self, args):
        self.args, self.dtype = args, getattr(torch, args.dtype)
        widths, heads, self.text_width = (
            ((32, 64, 64, 64), 2, 32) if args.tiny else ((320, 640, 1280, 1280), 8, 768)
        )
        shared = {
            "in_channels": 4,
            "layers_per_block": 2,
            "block_out_channels": widths,
            "cross_attention_dim": self.text_width,
            "attention_head_dim": heads,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        }
        unet = UNet2DConditionModel(
            **shared, out_channels=4, up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        )
        control = ControlNetModel(**shared, conditioning_channels=HINT_CHANNELS)
        vae_widths = (32, 32, 64, 64) if args.tiny else (128, 256, 512, 512)
        vae = AutoencoderKL(
            block_out_channels=vae_widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        for network in (unet, control, vae):
            network.to(args.device, self.dtype).to(
                memory_format=torch.channels_last
            ).eval().requires_grad_(False)
        self.embed_hints = control.controlnet_cond_embedding
        control.controlnet_cond_embedding = torch.nn.Identity()  # its features come in, made once
        self.unet, self.control, self.vae = unet, control, vae
        for network in (unet, control):
            for attention in cross_attentions(network):
                attention.set_processor(KeptKeysValues())
        compiled = lambda f: (
            f
            if args.mode == "none"
            else torch.compile(f, fullgraph=True, dynamic=False, **how(args.mode))
        )
        self.step, self.decode = compiled(self._step), compiled(self._decode)
        levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        self.times = (np.arange(0, 1000, 1000 // args.steps) + 1)[::-1]
        device = lambda x: torch.tensor(np.ascontiguousarray(x), device=args.device).float()
        self.then = device(levels[np.append(self.times[1:], 0)])
        self.now, self.times = device(levels[self.times]), device(self.times)

    def inputs(self, batch):
        """Latents, text of both halves, identity tokens, hints."""
        make = lambda *shape: torch.randn(*shape, device=self.args.device, dtype=self.dtype)
        last = lambda x: x.contiguous(memory_format=torch.channels_last)
        side = self.args.size // 8
        return (
            last(make(batch, 4, side, side)).float(),
            make(2 * batch, 77, self.text_width),
            make(batch, IDENTITY_TOKENS, self.text_width),
            last(make(batch, HINT_CHANNELS, self.args.size, self.args.size)),
        )

    def __call__(self, latents, text, identity, hints):
        features = self.embed_hints(hints)
        keep(self.unet, text)
        keep(self.control, identity)
        for coefficients in zip(self.times, self.now, self.then):
            torch.compiler.cudagraph_mark_step_begin()
            latents = self.step(latents, features, *coefficients).clone()
        torch.compiler.cudagraph_mark_step_begin()
        return self.decode(latents)

    def _step(self, latents, features, time_, now, then):
        x, steps = latents.to(self.dtype), time_.expand(latents.shape[0])
        # Contexts are not read: their keys and values are kept.
        unread = latents.new_zeros((1, 1, 1), dtype=self.dtype)
        down, middle = self.control(x, steps, unread, features, return_dict=False)
        twice = lambda y: torch.cat([y, y])
        noise = self.unet(
            twice(x),
            twice(steps),
            unread,
            down_block_additional_residuals=[twice(y) for y in down],
            mid_block_additional_residual=twice(middle),
            return_dict=False,
        )[0]
        empty, with_text = noise.float().chunk(2)
        noise = empty + GUIDANCE * (with_text - empty)
        clean = (latents - (1 - now) ** 0.5 * noise) / now**0.5
        return then**0.5 * clean + (1 - then) ** 0.5 * noise

    def _decode(self, latents):
        pictures = self.vae.decode((latents / 0.18215).to(self.dtype), return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)


def how(mode: str) -> dict:
    """Arguments of torch.compile."""
    if mode == "tuned-products":
        products = {"max_autotune_gemm": True, "max_autotune_conv_backends": "ATEN"}
        return {"options": products | {"triton.cudagraphs": True}}
    return {"mode": mode}


class KeptKeysValues:
    """Attention of diffusers to the keys and values that `keep` computed."""

    def __call__(self, attn, hidden_states, *_, **__):
        batch, length, width = hidden_states.shape
        query = attn.to_q(hidden_states).view(batch, length, attn.heads, -1).transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(query, attn.kept_k, attn.kept_v)
        return attn.to_out[0](out.transpose(1, 2).reshape(batch, length, width))


def cross_attentions(network):
    return [part for name, part in network.named_modules() if name.endswith("attn2")]


def keep(network, context):
    """Compute keys and values of every cross-attention, into the same memory each time."""
    for attn in cross_attentions(network):
        for name, layer in (("kept_k", attn.to_k), ("kept_v", attn.to_v)):
            made = layer(context).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            if getattr(attn, name, None) is None or getattr(attn, name).shape != made.shape:
                attn.register_buffer(name, made.contiguous())
            getattr(attn, name).copy_(made)


def measure(work, batch, args) -> dict:
    """Median seconds a batch, from inputs on the device to pictures on the host, one after the
    other; and pictures a second where a batch begins before the last has arrived.
    """
    inputs, times = work.inputs(batch), []
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.repeats + 2):
        started = time.perf_counter()
        assert work(*inputs).cpu().shape == (batch, 3, args.size, args.size)
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[2:])
    rates = [batch / streamed(work, inputs, args.repeats) for _ in range(3)]
    line = {
        "batch": batch,
        "first_s": round(times[0], 2),
        "seconds": round(seconds, 4),
        "seconds_range": [round(min(times[2:]), 4), round(max(times[2:]), 4)],
        "pictures_a_second": round(statistics.median(rates), 3),
        "pictures_a_second_range": [round(min(rates), 3), round(max(rates), 3)],
    }
    return line | (
        {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
        if args.device == "cuda"
        else {}
    )


def streamed(work, inputs, repeats: int) -> float:
    """Seconds a batch, the next begun before the last is fetched."""
    if not inputs[0].is_cuda:
        started = time.perf_counter()
        for _ in range(repeats + 1):
            work(*inputs)
        return (time.perf_counter() - started) / (repeats + 1)
    there = work(*inputs)
    hosts = [torch.empty(there.shape, dtype=there.dtype, pin_memory=True) for _ in range(2)]
    arrived = [torch.cuda.Event() for _ in hosts]
    torch.cuda.synchronize()
    started = time.perf_counter()
    for turn in range(repeats + 2):
        if turn <= repeats:
            hosts[turn % 2].copy_(work(*inputs), non_blocking=True)
            arrived[turn % 2].record()
        if turn:
            arrived[(turn - 1) % 2].synchronize()
            hosts[(turn - 1) % 2].clone()  # as the other side hands out arrays of its own
    return (time.perf_counter() - started) / (repeats + 1)


if __name__ == "__main__":
    main()
