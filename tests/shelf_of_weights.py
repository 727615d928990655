"""The files of weights that the pages name: true names, the names of tensors of the published
files, small networks.
"""

import dataclasses
import json
import sys
from pathlib import Path

import flame_standin
import numpy as np
import published_standins
import safetensors.torch
import torch
from safetensors.numpy import save_file

from caphuman_jax.config import ModelConfig

sys.path.insert(0, str(Path(__file__).parent / "weights"))
import weight_standins
from weight_standins import PREFIXES, state_dict, value

CONFIG: ModelConfig = dataclasses.replace(
    weight_standins.TINY,
    identity=dataclasses.replace(weight_standins.TINY.identity, recognition_width=512),
)
"""Takes FaceNet's 512 numbers, as the published model does."""

FACENET, DECA, FACE_PARSING = "20180402-114759-vggface2.pt", "deca_model.tar", "79999_iter.pth"
MTCNN = ("pnet.pt", "rnet.pt", "onet.pt")


def write(folder: Path) -> None:
    """tiny.json, the model's size, in `folder`; and every file, as the pages name them: what
    `--from` is to find in downloads/, with FLAME in downloads/flame, which CAPHUMAN_FLAME must
    name; and all of them next to one another.
    """
    downloads = folder / "downloads"
    (downloads / "flame").mkdir(parents=True)
    flame_standin.write_folder(downloads / "flame")
    (folder / "flame").symlink_to(downloads / "flame")
    (folder / "tiny.json").write_text(json.dumps(CONFIG.to_dict()))
    whole = state_dict(dtype=torch.float16)
    whole["id_linear.weight"] = value("id_linear.weight", (16, 512)).half()
    torch.save({"state_dict": whole}, downloads / "caphuman.ckpt")
    published_standins.write_face_networks(downloads)
    for name in ("caphuman.ckpt", FACENET, DECA, FACE_PARSING):
        (folder / name).symlink_to(downloads / name)
    (folder / "mtcnn").mkdir()
    for name in MTCNN:
        (folder / "mtcnn" / name).symlink_to(downloads / name)

    base = state_dict(PREFIXES["unet"], PREFIXES["vae"], PREFIXES["text"], seed=1)
    safetensors.torch.save_file(base, folder / "realistic_vision.safetensors")
    torch.save({"state_dict": base}, folder / "Realistic_Vision_V3.0.ckpt")
    prefix = PREFIXES["vae"]
    vae = {name.removeprefix(prefix): tensor for name, tensor in state_dict(prefix).items()}
    torch.save({"state_dict": vae}, folder / "vae-ft-mse-840000-ema-pruned.ckpt")
    clip = state_dict(PREFIXES["text"], PREFIXES["image_encoder"], seed=3)
    clip = {name.split("transformer.")[1]: tensor for name, tensor in clip.items()}
    (folder / "clip-vit-large-patch14").mkdir()
    safetensors.torch.save_file(clip, folder / "clip-vit-large-patch14" / "model.safetensors")

    # A ControlNet has CapFace's names, without the mask, and three hint channels.
    control = {k: v for k, v in state_dict("control_model.").items() if "mask_predict" not in k}
    control["control_model.input_hint_block.0.weight"] = value("hint", (4, 3, 3, 3))
    torch.save(control, folder / "control_v11p_sd15_openpose.pth")
    layer = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_"
    rows = {"down": (2, CONFIG.unet.channels), "up": (CONFIG.unet.channels, 2)}
    lora = {f"{layer}{role}.weight": np.ones(shape, np.float32) for role, shape in rows.items()}
    save_file(lora, folder / "style.safetensors")
