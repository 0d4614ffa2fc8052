"""BERT-family encoders from a directory in the layout of Hugging Face.

It has config.json (the sizes), model.safetensors (the weights, with the names and the layout of the
PyTorch models) and tokenizer.json. Only the weights of the encoder are read: poolers and heads are
left out.
"""

import importlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from pinjax.errors import InputError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
_PREFIXES = ("", "bert.", "distilbert.")
_BUFFER = "embeddings.position_ids"  # the numbers 0, 1, 2, ..., which older files hold


class _Family(NamedTuple):
    """The names in a family of models.

    Attributes:
      sizes: the key in config.json of each size.
      activation: the key of the activation.
      layers: where the tensors of the blocks are.
      parts: the name in a block of each of its maps and norms.
    """

    sizes: dict[str, str]
    activation: str
    layers: str
    parts: dict[str, str]


_FAMILIES = {
    "bert": _Family(
        sizes={
            "vocabulary": "vocab_size",
            "positions": "max_position_embeddings",
            "token_types": "type_vocab_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "width": "hidden_size",
            "ffn_width": "intermediate_size",
        },
        activation="hidden_act",
        layers="encoder.layer.",
        parts={
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention_out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "ffn_in": "intermediate.dense",
            "ffn_out": "output.dense",
            "ffn_norm": "output.LayerNorm",
        },
    ),
    "distilbert": _Family(
        sizes={
            "vocabulary": "vocab_size",
            "positions": "max_position_embeddings",
            "layers": "n_layers",
            "heads": "n_heads",
            "width": "dim",
            "ffn_width": "hidden_dim",
        },
        activation="activation",
        layers="transformer.layer.",
        parts={
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_out": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "ffn_in": "ffn.lin1",
            "ffn_out": "ffn.lin2",
            "ffn_norm": "output_layer_norm",
        },
    ),
}


class Pretrained(NamedTuple):
    """An encoder and its tokens.

    Attributes:
      sizes: the attributes of `models.bert.Bert` that it has.
      params: the parameters of such a module, float32.
      tokenizer: makes its inputs.
    """

    sizes: dict[str, Any]
    params: dict[str, Any]
    tokenizer: "Tokenizer"


def read(directory: epath.PathLike, length: int) -> Pretrained:
    """Reads a BERT or a DistilBERT.

    Args:
      directory: where the three files are.
      length: tokens of every text, see `Tokenizer`.

    Raises:
      InputError: for a file that is missing or not readable, another kind of model, weights that
        are not those of the sizes, a length or tokens that the model has no embedding for, and
        where safetensors or tokenizers is not installed. See `Tokenizer`, too.
    """
    directory = epath.Path(directory)
    family, sizes = _config(directory / "config.json")
    if length > sizes["positions"]:
        raise InputError(
            f"{directory}: texts of {length} tokens; expected at most {sizes['positions']}, the "
            "positions in config.json"
        )
    tokenizer = Tokenizer(directory, length)
    if tokenizer.vocabulary > sizes["vocabulary"]:
        raise InputError(
            f"{directory}: tokenizer.json has {tokenizer.vocabulary} tokens; expected at most "
            f"{sizes['vocabulary']}, as in config.json"
        )
    return Pretrained(sizes, _params(directory / "model.safetensors", family, sizes), tokenizer)


class Tokenizer:
    """Turns texts into ids by the tokenizer.json in a directory, with its special tokens.

    Attributes:
      length: tokens of every text. Longer texts are cut, shorter ones padded with id 0.
      vocabulary: all ids are below it.
    """

    def __init__(self, directory: epath.PathLike, length: int):
        """Reads a tokenizer.json.

        Raises:
          InputError: for a file that is missing or not readable, one that adds no special tokens,
            a length that has no room for more than these, or where tokenizers is not installed.
        """
        path = epath.Path(directory) / "tokenizer.json"
        tokenizers, data = _library("tokenizers"), _bytes(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except ValueError as error:
            raise InputError(f"{path}: not readable as a tokenizer: {error}") from error
        special = self._tokenizer.num_special_tokens_to_add(False)
        if not special:
            raise InputError(f"{path}: adds no special tokens; expected [CLS] before every text")
        if length <= special:
            raise InputError(
                f"{path}: texts are cut to {length} tokens; expected more than the {special} "
                "special ones"
            )
        self.length = length
        self.vocabulary = 1 + max(self._tokenizer.get_vocab().values(), default=0)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32, mask bool), both (texts, length); the mask is False for padding."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        shape = (len(encodings), self.length)
        ids = np.array([encoding.ids for encoding in encodings], np.int32)
        mask = np.array([encoding.attention_mask for encoding in encodings], bool)
        return ids.reshape(shape), mask.reshape(shape)


def _config(path: epath.Path) -> tuple[_Family, dict[str, Any]]:
    """The family of a model and its sizes."""
    data = _bytes(path)
    try:
        config = json.loads(data)
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected JSON with a model_type: {error!r}") from error
    if kind not in list(_FAMILIES):  # values other than text may not be hashable
        raise InputError(f"{path}: model_type is {kind!r}; expected one of {list(_FAMILIES)}")
    family = _FAMILIES[kind]
    sizes = {}
    for size, key in family.sizes.items():
        sizes[size] = config.get(key)
        if type(sizes[size]) is not int or sizes[size] < 1:  # `true` is an int, too
            raise InputError(f"{path}: {key} is {sizes[size]!r}; expected an integer above 0")
    if sizes["width"] % sizes["heads"]:
        raise InputError(
            f"{path}: width {sizes['width']} and {sizes['heads']} heads; expected heads that "
            "divide the width"
        )
    activation = config.get(family.activation)
    if activation != "gelu":
        raise InputError(f"{path}: {family.activation} is {activation!r}; expected 'gelu'")
    epsilon = config.get("layer_norm_eps", 1e-12)  # DistilBERT has neither this key nor types
    if not isinstance(epsilon, float):
        raise InputError(f"{path}: layer_norm_eps is {epsilon!r}; expected a number")
    return family, {"token_types": 0, **sizes, "epsilon": epsilon}


def _params(path: epath.Path, family: _Family, sizes: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `models.bert.Bert`.

    Raises:
      InputError: unless the file has all tensors of the encoder, of the shapes that follow from the
        sizes, and no others of an encoder.
    """
    safetensors, data = _library("safetensors"), _bytes(path)
    try:
        tensors = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error
    # The first checkpoints came from TensorFlow, and LayerNorm's weights keep their names there.
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        tensors = {re.sub(f"LayerNorm.{old}$", f"LayerNorm.{new}", k): tensors[k] for k in tensors}
    width, heads, layers = sizes["width"], sizes["heads"], sizes["layers"]
    shapes = _shapes(family, sizes)
    # In a model with a head, the encoder has a prefix, and the head does not.
    word = "embeddings.word_embeddings.weight"
    prefix = next((prefix for prefix in _PREFIXES if prefix + word in tensors), "")
    unexpected = tensors.keys() - {prefix + name for name in (*shapes, _BUFFER)}
    for name in sorted(unexpected):
        if name.startswith((f"{prefix}embeddings.", prefix + family.layers)):
            raise InputError(
                f"{path}: unexpected tensor {name} {tensors[name]['shape']}; expected an encoder "
                f"of {layers} layers, as in config.json"
            )

    def tensor(name):
        name, shape = prefix + name, list(shapes[name])
        if name not in tensors:
            raise InputError(f"{path}: no tensor {name}; expected one of shape {shape}")
        found = tensors[name]
        if found["shape"] != shape or found["dtype"] not in _DTYPES:
            raise InputError(
                f"{path}: {name} is {found['dtype']} {found['shape']}; expected floats {shape}"
            )
        values = np.frombuffer(found["data"], _DTYPES[found["dtype"]])
        return values.astype(np.float32).reshape(shape)

    def stacked(part, kind):
        name = f"{family.parts[part]}.{kind}"
        return np.stack([tensor(f"{family.layers}{layer}.{name}") for layer in range(layers)])

    def linear(part):
        return {"kernel": stacked(part, "weight").swapaxes(1, 2), "bias": stacked(part, "bias")}

    def norm(part):
        return {"scale": stacked(part, "weight"), "bias": stacked(part, "bias")}

    parts = [linear(part) for part in ("query", "key", "value")]
    by_head = (3, heads, width // heads)
    out = linear("attention_out")
    params = {
        "token": {"embedding": tensor(word)},
        "position": tensor("embeddings.position_embeddings.weight"),
        "norm": {
            "scale": tensor("embeddings.LayerNorm.weight"),
            "bias": tensor("embeddings.LayerNorm.bias"),
        },
        "blocks": {
            "query_key_value": {
                "kernel": np.stack([part["kernel"] for part in parts], axis=2).reshape(
                    layers, width, *by_head
                ),
                "bias": np.stack([part["bias"] for part in parts], axis=1).reshape(
                    layers, *by_head
                ),
            },
            "attention_out": {**out, "kernel": out["kernel"].reshape(layers, *by_head[1:], width)},
            "attention_norm": norm("attention_norm"),
            "ffn_in": linear("ffn_in"),
            "ffn_out": linear("ffn_out"),
            "ffn_norm": norm("ffn_norm"),
        },
    }
    if sizes["token_types"]:
        params["token_type"] = tensor("embeddings.token_type_embeddings.weight")
    return params


def _shapes(family: _Family, sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of an encoder, without prefix; matrices are (out, in), as in PyTorch."""
    width, hidden = sizes["width"], sizes["ffn_width"]
    shapes = {
        "embeddings.word_embeddings.weight": (sizes["vocabulary"], width),
        "embeddings.position_embeddings.weight": (sizes["positions"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    if sizes["token_types"]:
        shapes["embeddings.token_type_embeddings.weight"] = (sizes["token_types"], width)
    for layer in range(sizes["layers"]):
        for part, name in family.parts.items():
            out = hidden if part == "ffn_in" else width
            into = hidden if part == "ffn_out" else width
            name = f"{family.layers}{layer}.{name}"
            shapes[f"{name}.weight"] = (out,) if part.endswith("norm") else (out, into)
            shapes[f"{name}.bias"] = (out,)
    return shapes


def _bytes(path: epath.Path) -> bytes:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected config.json, model.safetensors and tokenizer.json"
        )
    return path.read_bytes()


def _library(name: str) -> Any:
    """Imports an optional library."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed; expected the packages of requirements-bert.txt"
        ) from error
