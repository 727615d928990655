"""The syntax of prompts against the answers that AUTOMATIC1111's documentation gives, chunks
against a plain count, weights and skipped layers against transformers' text encoder.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from caphuman_jax.config import ModelConfig, TextConfig
from caphuman_jax.diffusion.text_to_image import encode_text
from caphuman_jax.errors import SettingError
from caphuman_jax.models.prompt import PromptEncoder, parse
from caphuman_jax.models.tokenizer import END_ID, START_ID, ClipTokenizer

COMMA = 267


@pytest.mark.parametrize(
    "text, parts",
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.3 * 1.1**2),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("a) b] c", [("a) b] c", 1)]),
        ("time 10:30", [("time 10:30", 1)]),
        ("[[dim]]", [("dim", 1.1**-2)]),
        ("(a:-1.5)", [("a", -1.5)]),
        ("(a :.5 )b", [("a ", 0.5), ("b", 1)]),
        ("a BREAK b", [("a", 1), (None, 1), ("b", 1)]),
        ("a BREAKFAST", [("a BREAKFAST", 1)]),
        ("(a BREAK b:2)", [("a", 2), (None, 1), ("b", 2)]),
    ],
)
def test_grammar(text, parts):
    found = parse(text)
    assert [words for words, _ in found] == [words for words, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    "text, message",
    [
        ("a <lora:my style:0.8> dog", "add --lora my style.safetensors:0.8"),
        ("<LORA:x>", "add --lora x.safetensors"),
        ("<hypernet:x:0.5>", "<hypernet:x:0.5> asks for a hypernetwork, which is not supported"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5] asks for a prompt that changes"),
        ("a [cat|dog] x", "[cat|dog] asks for a prompt that changes"),
    ],
)
def test_what_prompts_cannot_do_is_refused(text, message):
    with pytest.raises(SettingError) as error:
        parse(text)
    assert message in str(error.value)


def encoder(length=77, words=None):
    return PromptEncoder(ClipTokenizer(), length).with_words(words or {})


def rows(prompt, length=77):
    return prompt.token_ids.reshape(-1, length)


@pytest.mark.parametrize("text", ["", "a photo of a smiling person", "don't, it's: <b> café 😀"])
def test_a_prompt_without_signs_has_the_ids_of_the_tokenizer(text):
    for syntax in (True, False):
        prompt, negative = encoder()([text, ""], syntax)
        np.testing.assert_array_equal(prompt.token_ids, ClipTokenizer()([text])[0])
        assert prompt.weights is None and not prompt.added and prompt.token_ids.dtype == np.int32
        np.testing.assert_array_equal(negative.token_ids, ClipTokenizer()([""])[0])


def test_brackets_can_be_literal():
    (prompt,) = encoder()(["(a:1.3) BREAK [b]"], syntax=False)
    np.testing.assert_array_equal(prompt.token_ids, ClipTokenizer()(["(a:1.3) BREAK [b]"])[0])


def test_long_prompts_take_chunks_of_75():
    ids = ClipTokenizer().ids("word " * 160)
    prompt, negative = encoder()(["word " * 160, "no"])
    chunks = rows(prompt)
    assert chunks.shape == (3, 77) and rows(negative).shape == (3, 77)
    assert (chunks[:, 0] == START_ID).all() and (chunks[:, -1] == END_ID).all()
    assert [*chunks[0, 1:76], *chunks[1, 1:76], *chunks[2, 1:11]] == ids
    assert (chunks[2, 11:] == END_ID).all()
    # What is shorter is filled up with chunks of an empty prompt.
    np.testing.assert_array_equal(rows(negative)[1], ClipTokenizer()([""])[0])


def test_a_full_chunk_ends_at_its_last_comma_if_that_is_near():
    near = "word " * 60 + ", " + "tree " * 30
    chunks = rows(encoder()([near])[0])
    assert chunks[0, 61] == COMMA and (chunks[0, 62:] == END_ID).all()
    assert (chunks[1, 1:31] == ClipTokenizer().ids("tree")[0]).all()
    far = "word " * 40 + ", " + "tree " * 50
    chunks = rows(encoder()([far])[0])
    assert chunks[0, 41] == COMMA and chunks[0, 75] == ClipTokenizer().ids("tree")[0]
    at_the_end = "word " * 75 + ", tree"
    chunks = rows(encoder()([at_the_end])[0])
    assert chunks[1, 1] == COMMA


def test_break_begins_a_chunk():
    chunks = rows(encoder()(["a BREAK (b:2) BREAK"])[0])
    first, second = (ClipTokenizer()([text])[0] for text in ("a", "b"))
    np.testing.assert_array_equal(chunks, [first, second])
    assert encoder()(["a BREAK (b:2)"])[0].weights.reshape(2, 77)[1, :3].tolist() == [1, 2, 1]


def test_words_of_embeddings():
    encode = encoder(words={"my style": 3, "style": 1})
    (prompt,) = encode(["a (my style:1.5), style"])
    chunk = rows(prompt)[0]
    a, comma = ClipTokenizer().ids("a")[0], COMMA
    assert chunk[1:8].tolist() == [a, 49408, 49409, 49410, comma, 49411, END_ID]
    assert prompt.added and prompt.weights[2:5].tolist() == [1.5] * 3
    # Vectors of one word stay together.
    (prompt,) = encode(["word " * 74 + "my style"])
    assert rows(prompt)[0, 75] == END_ID and rows(prompt)[1, 1:4].tolist() == [49408, 49409, 49410]


def test_a_prompt_without_an_end_is_refused():
    with pytest.raises(SettingError, match="longer than 3000 tokens"):
        encoder()(["word " * 4000])


@pytest.fixture(scope="module")
def networks():
    """A small text encoder of transformers with random weights, and ours with the same."""
    from pytorch_weights import from_pytorch

    from caphuman_jax.models import registry

    text = TextConfig(vocabulary=49408, length=77, width=32, layers=3, heads=4, mlp_width=48)
    torch.manual_seed(0)
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=text.vocabulary,
            hidden_size=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            intermediate_size=text.mlp_width,
            eos_token_id=END_ID,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 1))
    config = ModelConfig(text=text)
    graph, shapes = registry.abstract(config, only=("text",))["text"]
    prefix = "text_model."
    arrays = {
        prefix + name.removeprefix(prefix): x.numpy() for name, x in theirs.state_dict().items()
    }
    params = from_pytorch("text", config, shapes, arrays, put=jnp.asarray)
    return theirs, nnx.merge(graph, params)


def reference(theirs, text, skip=0):
    """Chunk by chunk: the output times the weights, then its mean restored."""
    parts = [(ClipTokenizer().ids(words), weight) for words, weight in parse(text)]
    flat = [(token, weight) for ids, weight in parts for token in ids]
    out = []
    for start in range(0, max(len(flat), 1), 75):
        chunk = flat[start : start + 75]
        ids = [START_ID, *(token for token, _ in chunk)] + [END_ID] * (76 - len(chunk))
        weights = torch.tensor([1.0, *(w for _, w in chunk)] + [1.0] * (76 - len(chunk)))
        with torch.no_grad():
            made = theirs(torch.tensor([ids]), output_hidden_states=True)
            norm = dict(theirs.named_modules())
            norm = next(norm[name] for name in norm if name.endswith("final_layer_norm"))
            hidden = norm(made.hidden_states[-1 - skip])[0]
        weighted = hidden * weights[:, None]
        out.append(weighted * (hidden.mean() / weighted.mean()))
    return torch.cat(out).numpy()


@pytest.mark.parametrize(
    "text, skip",
    [
        ("a photo of a person", 0),
        ("a (smiling:1.4) [person] in ((red))", 0),
        ("a (smiling:0.2) person " + "word " * 90 + "(end:1.8)", 0),
        ("a (smiling:1.4) person", 1),
    ],
)
def test_weights_and_chunks_give_the_numbers_of_transformers(networks, text, skip):
    theirs, ours = networks
    (prompt,) = encoder()([text])
    weights = None if prompt.weights is None else jnp.asarray(prompt.weights)[None]
    found = jax.jit(lambda ids, w: encode_text(ours, ids, w, skip=skip))(
        jnp.asarray(prompt.token_ids)[None], weights
    )
    expected = reference(theirs, text, skip)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


def test_added_embeddings_stand_where_tokens_would(networks):
    _, ours = networks
    plain = encoder()(["a dog and a cat"])[0]
    table = ours.tokens.embedding[...]
    vectors = jnp.stack([table[ClipTokenizer().ids(word)[0]] for word in ("cat", "dog")])
    added = encoder(words={"xyzzy": 1, "plugh": 1})(["a plugh and a xyzzy"])[0]
    expected = encode_text(ours, jnp.asarray(plain.token_ids)[None])
    found = encode_text(ours, jnp.asarray(added.token_ids)[None], embeddings=vectors)
    np.testing.assert_array_equal(found, expected)


def test_prompts_of_one_kind_share_a_program():
    encode = encoder(words={"xyzzy": 1})
    kinds = [
        encode([text])[0].kind for text in ("a", "b c", "(a:2)", "[b] c", "xyzzy", "a BREAK b")
    ]
    assert kinds[0] == kinds[1] != kinds[2] == kinds[3] and len(set(kinds)) == 4
    assert dataclasses.is_dataclass(encode(["a"])[0])


@pytest.mark.parametrize(
    "text, words",
    [
        ("blurry, easynegative", ["easynegative"]),
        ("EasyNegativeV2, bad-hands-5, (bad_prompt_version2:0.8)", 3),
        ("ng_deepnegative_v1_75t,verybadimagenegative_v1.3", 2),
        ("embedding:mine, (embedding:mine:1.2)", ["embedding:mine"]),
        ("a toy in the style of <my-style>", ["<my-style>"]),
        ("bad hands, a negative mood, easy, bad artist", []),
        ("I <3 you, 1 < 2 > 0, uneasynegativeness", []),
    ],
)
def test_names_of_embeddings_that_are_not_loaded(text, words):
    found = PromptEncoder(ClipTokenizer()).unread_embeddings(text)
    assert found == words or len(found) == words
