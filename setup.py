"""Packaging of CapHuman on JAX: `pip install .`; extras and their reasons are in docs/decisions.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'"(.+)"\n$', (ROOT / "caphuman_jax/version.py").read_text()).group(1)
EXTRAS = {
    "train": [
        "onnx",
        "tensorboardX",
    ],  # recognizers as losses; TensorBoard's files without TensorFlow
    # importlib-resources: tensorflow-datasets imports it without asking for it
    "data": [
        "tensorflow-cpu",
        "tensorflow-datasets",
        "importlib-resources",
        "apache-beam",
        "array-record",
        "grain",
        "matplotlib",
    ],
    "studio": ["gradio"],
    "insightface": [
        "insightface>=2"
    ],  # ArcFace model packs that the user has; 2.x installs without a compiler
    "test": [
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "import-linter",
        "onnx",
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],  # caphuman compile: libtpu
    "lint": ["ruff", "import-linter"],
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "compile": [
        "jax[tpu]"
    ],  # libtpu alone is wanted, to compile for TPUs that are elsewhere; Linux on x86-64
}

setup(
    name="caphuman-jax",
    version=VERSION,
    description="CapHuman on JAX and Flax: a photo of a face, a sentence and a head pose in; "
    "pictures of that person out",
    long_description=Path("README.md").read_text(encoding="utf-8")
    if Path("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["caphuman_jax*", "data_pipeline*"]), "caphuman_jax.configs"],
    # configs/ stands at the top of the checkout, but a package named `configs` in everyone's
    # site-packages would clash.
    package_dir={"caphuman_jax.configs": "configs"},
    package_data={"caphuman_jax": ["assets/**"]},
    entry_points={"console_scripts": ["caphuman=caphuman_jax.cli.app:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "ml-collections>=1",
        "numpy>=2",
        "scipy",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "onnxruntime>=1.20",
        "opencv-python-headless>=4.10",
        "pillow>=11",
        "tqdm",
    ],
    extras_require=EXTRAS,
)
