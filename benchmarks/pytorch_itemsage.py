"""ItemSage's product encoder in PyTorch, on arrays of benchmarks/itemsage_encoder.py.

    .venv-peers/bin/python benchmarks/pytorch_itemsage.py IN.npz OUT.npz

itemsage_encoder.py starts it in .venv-peers, and writes a line to its standard input for each step
to be timed; the answer is a line with the seconds. At the end of the input, embeddings and
gradients are written to OUT.npz.
"""

import functools
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class ItemSage(nn.Module):
    """The encoder of pinjax.models.itemsage, built of PyTorch's own layers."""

    def __init__(self, texts, tokens, buckets, image_dim, token_dim, width, dim, heads):
        super().__init__()
        self.texts = texts
        self.table = nn.EmbeddingBag(buckets, token_dim, mode="sum")
        self.importance = nn.Embedding(tokens, 2)
        self.image_map = nn.Linear(image_dim, width)
        self.text_maps = nn.ModuleList(nn.Linear(token_dim, width) for _ in range(texts))
        self.cls = nn.Parameter(torch.zeros(width))
        self.block = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            dropout=0.0,
            # The tanh form, as Flax's GELU has it; the other is no faster.
            activation=functools.partial(F.gelu, approximate="tanh"),
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(approximate="tanh"), nn.Linear(width, dim)
        )

    def forward(self, images, image_mask, tokens, rows, offsets):
        products = len(images)
        images = F.normalize(images, dim=-1) * images.shape[-1] ** 0.5 * image_mask[..., None]
        # Each text's tokens, and two rows of the table to a token.
        texts = self.table(
            rows.reshape(-1), 2 * offsets, per_sample_weights=self.importance(tokens).reshape(-1)
        )
        texts = texts.reshape(products, self.texts, -1) * texts.shape[-1] ** 0.5
        text_mask = torch.diff(offsets, append=offsets.new_tensor([len(tokens)])) > 0
        x = torch.cat(
            [
                self.cls.expand(products, 1, -1),
                self.image_map(images),
                *(text_map(texts[:, i : i + 1]) for i, text_map in enumerate(self.text_maps)),
            ],
            dim=1,
        )
        mask = torch.cat(
            [
                image_mask.new_ones(products, 1),
                image_mask,
                text_mask.reshape(products, self.texts),
            ],
            dim=1,
        )
        x = self.block(x, src_key_padding_mask=~mask)
        return F.normalize(self.head(self.norm(x[:, 0])), dim=-1)


def main(source: str, target: str) -> None:
    with np.load(source) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = {
        name.removeprefix("weight."): x for name, x in arrays.items() if name.startswith("weight.")
    }
    buckets, token_dim = weights["table.weight"].shape
    width, image_dim = weights["image_map.weight"].shape
    model = ItemSage(
        texts=int(arrays["texts"]),
        tokens=len(weights["importance.weight"]),
        buckets=buckets,
        image_dim=image_dim,
        token_dim=token_dim,
        width=width,
        dim=len(weights["head.2.weight"]),
        heads=int(arrays["heads"]),
    )
    model.load_state_dict(weights)
    inputs = [arrays[name] for name in ("images", "image_mask", "tokens", "rows", "offsets")]

    def step():
        model.zero_grad()
        embeddings = model(*inputs)
        (embeddings * arrays["towards"]).sum().backward()
        return embeddings

    for _ in sys.stdin:
        start = time.perf_counter()
        embeddings = step()
        print(time.perf_counter() - start, flush=True)
    gradients = {f"gradient.{name}": x.grad for name, x in model.named_parameters()}
    np.savez(target, embeddings=embeddings.detach(), **gradients)


if __name__ == "__main__":
    main(*sys.argv[1:])
