"""LightGCN of PyTorch Geometric on a prepared graph; benchmarks/lightgcn.py starts this.

    .venv-peers/bin/python benchmarks/pyg_lightgcn.py DIR OUT.parquet --epochs=N

Layers, embedding dimension, initial embeddings and regularisation are those of He et al. (SIGIR
2020); batches and the learning rate are larger, since a step costs a CPU the same whatever its
batch. OUT has the best items of each group that are not its training items.
"""

import argparse
import pathlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.nn.models import LightGCN

LAYERS, DIM, REGULARISATION = 3, 64, 1e-4
BATCH, LEARNING_RATE = 16_384, 5e-3
LISTED = 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    graph = args.directory / "graph"
    offsets = np.load(graph / "group_offsets.npy")
    item = torch.from_numpy(np.load(graph / "group_neighbours.npy").astype(np.int64))
    items = len(np.load(graph / "item_offsets.npy")) - 1
    groups = len(offsets) - 1
    group = torch.from_numpy(np.repeat(np.arange(groups), np.diff(offsets)))
    trained = torch.unique(group * items + item)
    nodes = torch.stack([group, groups + item])
    edges = torch.cat([nodes, nodes.flip(0)], dim=1)
    edges, weight = gcn_norm(edges, num_nodes=groups + items, add_self_loops=False)
    shape = groups + items, groups + items
    matrix = torch.sparse_coo_tensor(edges, weight, shape).coalesce().to_sparse_csr()

    # The matrix is symmetric: its product is its own gradient, and autograd, which transposes the
    # matrix in every step, takes five times as long.
    model = LightGCN(groups + items, DIM, LAYERS)
    for conv in model.convs:
        conv.normalize = False
        conv.propagate = lambda matrix, x, edge_weight: Product.apply(matrix, x)
    torch.nn.init.normal_(model.embedding.weight, std=0.1)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    started = time.perf_counter()
    for epoch in range(args.epochs):
        losses = []
        for batch in torch.randperm(len(item)).split(BATCH):
            user, positive = group[batch], groups + item[batch]
            negative = groups + negatives(group[batch], trained, items)
            vectors = model.get_embedding(matrix)
            ranks = [(vectors[user] * vectors[x]).sum(-1) for x in (positive, negative)]
            loss = torch.nn.functional.softplus(ranks[1] - ranks[0]).mean()
            own = model.embedding.weight
            squares = sum(own[x].square().sum() for x in (user, positive, negative))
            (loss + REGULARISATION / 2 * squares / len(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, {seconds:.0f} s", flush=True)

    with torch.no_grad():
        vectors = model.get_embedding(matrix)
    best = []
    for start in range(0, groups, 1_024):
        scores = vectors[start : start + 1_024][: groups - start] @ vectors[groups:].T
        own = (group >= start) & (group < start + len(scores))
        scores[group[own] - start, item[own]] = -torch.inf
        best.append(scores.topk(min(LISTED, items)).indices)
    lists = pa.array(torch.cat(best).numpy().astype(np.int32).tolist(), pa.list_(pa.int32()))
    pq.write_table(pa.table({"items": lists}), args.out)


class Product(torch.autograd.Function):
    """The product of a symmetric matrix and vectors."""

    @staticmethod
    def forward(ctx, matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(matrix)
        return matrix @ vectors

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.saved_tensors[0] @ gradient


def negatives(user: torch.Tensor, trained: torch.Tensor, items: int) -> torch.Tensor:
    """A random item for each user that is none of the user's training items."""
    drawn = torch.empty_like(user)
    again = torch.arange(len(user))
    while len(again):
        drawn[again] = torch.randint(items, again.shape)
        pair = user[again] * items + drawn[again]
        place = torch.searchsorted(trained, pair).clamp(max=len(trained) - 1)
        again = again[trained[place] == pair]
    return drawn


if __name__ == "__main__":
    main()
