import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from caphuman_jax.config import ImageEncoderConfig, ModelConfig, TextConfig
from caphuman_jax.models import registry
from caphuman_jax.models.clip_image import normalize

TINY = ModelConfig(
    text=TextConfig(vocabulary=100, length=12, width=32, layers=3, heads=4, mlp_width=48),
    image_encoder=ImageEncoderConfig(
        image_size=28, patch=7, width=32, layers=3, heads=4, mlp_width=48
    ),
)


def run(graphdef, params, inputs):
    return jax.jit(lambda params, inputs: nnx.merge(graphdef, params)(inputs))(params, inputs)


def prefixed(prefix, module):
    """A module's weights under the names that checkpoints have; newer transformers leave the first
    part out.
    """
    return {prefix + name.removeprefix(prefix): x for name, x in module.state_dict().items()}


def difference(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_text_equals_transformers(randomized, filled):
    from transformers import CLIPTextConfig, CLIPTextModel

    cfg = TINY.text
    module = randomized(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=cfg.vocabulary,
                max_position_embeddings=cfg.length,
                hidden_size=cfg.width,
                num_hidden_layers=cfg.layers,
                num_attention_heads=cfg.heads,
                intermediate_size=cfg.mlp_width,
                hidden_act="quick_gelu",
                bos_token_id=98,
                eos_token_id=99,
                pad_token_id=99,
            )
        )
    )
    state_dict = prefixed("text_model.", module)
    graphdef, params = filled("text", TINY, state_dict)
    ids = np.array([[98, 5, 7, 99] + [99] * 8, [98, *range(10, 20), 99], [98, 99] + [99] * 10])
    theirs = module(torch.from_numpy(ids))
    hidden, pooled = run(graphdef, params, jnp.asarray(ids, jnp.int32))
    assert difference(hidden, theirs.last_hidden_state) < 1e-5
    assert difference(pooled, theirs.pooler_output) < 1e-5


def test_image_equals_transformers(randomized, filled):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    cfg = TINY.image_encoder
    module = randomized(
        CLIPVisionModel(
            CLIPVisionConfig(
                image_size=cfg.image_size,
                patch_size=cfg.patch,
                hidden_size=cfg.width,
                num_hidden_layers=cfg.layers,
                num_attention_heads=cfg.heads,
                intermediate_size=cfg.mlp_width,
                hidden_act="quick_gelu",
            )
        )
    )
    state_dict = prefixed("vision_model.", module)
    graphdef, params = filled("image_encoder", TINY, state_dict)
    images = np.random.default_rng(0).standard_normal((2, 3, 28, 28)).astype(np.float32)
    theirs = module(torch.from_numpy(images))
    hidden, pooled = run(graphdef, params, jnp.asarray(images.transpose(0, 2, 3, 1)))
    assert hidden.shape == (2, 17, 32)
    assert difference(hidden, theirs.last_hidden_state) < 1e-5
    assert difference(pooled, theirs.pooler_output) < 1e-5


def test_normalize_is_clips():
    from transformers import CLIPImageProcessor

    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    theirs = CLIPImageProcessor(do_resize=False, do_center_crop=False)(
        image, return_tensors="np"
    ).pixel_values[0]
    np.testing.assert_allclose(
        normalize(jnp.asarray(image, jnp.float32) / 255), theirs.transpose(1, 2, 0), atol=1e-5
    )


def test_narrow_embeddings_save_weights():
    cfg = ModelConfig(text=TextConfig(width=128, embed_width=16, layers=4, heads=4, mlp_width=512))
    graphdef, params = registry.abstract(cfg, only=("text",))["text"]
    assert params["tokens"]["embedding"].shape == (49408, 16)
    hidden, pooled = jax.eval_shape(
        lambda p, ids: nnx.merge(graphdef, p)(ids), params, jnp.zeros((2, 77), jnp.int32)
    )
    assert hidden.shape == (2, 77, 128) and pooled.shape == (2, 128)


def test_prompts_do_not_look_ahead():
    graphdef, params = registry.init(TINY, jax.random.key(0), only=("text",))["text"]
    a, b = jnp.asarray([[98, 5, 7, 9, 99, 99], [98, 5, 7, 11, 12, 99]], jnp.int32)
    hidden, _ = run(graphdef, params, jnp.stack([a, b]))
    np.testing.assert_allclose(hidden[0, :3], hidden[1, :3], atol=1e-5)
    assert not np.allclose(hidden[0, 3:], hidden[1, 3:], atol=1e-2)
