"""CapHuman on JAX: a photo of a face, a sentence and a head in; pictures of that person out.

import caphuman_jax
pipe = caphuman_jax.load("mini")
result = pipe(reference="me.jpg", prompt="a photo of a smiling person", head={"yaw": 20})
"""

import os

from caphuman_jax.version import __version__

# onnxruntime otherwise looks up its maker's server and keeps a device id; it reads this when it is
# imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["__version__", "load"]


def load(model="mini", *, download=False, **options):
    """Load a shipped model ("mini"), a model folder, or one of the Hugging Face hub ("ORG/NAME") as
    a `pipeline.pipeline.Pipeline`; see `pipeline.loading.load` for the options.

    The hub's local cache is looked up; `download=True` fetches what it does not hold.
    """
    from caphuman_jax.runtime.platforms import spare_libtpu

    spare_libtpu()
    from caphuman_jax.pipeline import loading  # brings JAX, which `caphuman --help` does not need
    from caphuman_jax.weights import model_folder

    return loading.load(model_folder.find_model(model, download), **options)
