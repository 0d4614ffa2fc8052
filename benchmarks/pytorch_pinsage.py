"""PinSage's train step in PyTorch, on weights and a batch of benchmarks/pinsage_step.py.

    .venv-peers/bin/python benchmarks/pytorch_pinsage.py IN.npz OUT.npz bag|select eager|compiled

That starts it, once for each form, and writes a line to its standard input for each step that it
wants timed; the answer is a line with the seconds of the second of two steps. The loss and the
gradients of the very first step are written to OUT.npz.
"""

import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class PinSage(nn.Module):
    """pinjax.models.pinsage with importance pooling, and its max-margin loss."""

    def __init__(self, form, width, message_width, dim, layers):
        super().__init__()
        self.form = form
        self.message = nn.ModuleList(nn.Linear(width, message_width) for _ in range(layers))
        self.update = nn.ModuleList(nn.Linear(width + message_width, width) for _ in range(layers))
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, dim, bias=False)

    def pool(self, messages, neighbours, weights):
        if self.form == "bag":
            return F.embedding_bag(neighbours, messages, per_sample_weights=weights, mode="sum")
        gathered = messages.index_select(0, neighbours.flatten())
        return (gathered.view(*neighbours.shape, -1) * weights[..., None]).sum(dim=1)

    def forward(self, content, layers, pairs, margin):
        h = F.normalize(content, dim=-1) * content.shape[1] ** 0.5
        for message, update, (nodes, *edges) in zip(self.message, self.update, layers, strict=True):
            pooled = self.pool(F.relu(message(h)), *edges)
            h = torch.cat([h.index_select(0, nodes), pooled], dim=1)
            h = F.normalize(F.relu(update(h)), dim=-1, eps=1e-6)
        z = F.normalize(self.out(F.relu(self.hidden(h))), dim=-1, eps=1e-6)
        queries, positives, negatives = z[:pairs], z[pairs : 2 * pairs], z[2 * pairs :]
        # All nodes of a batch differ, so there is nothing to mask.
        positive = (queries * positives).sum(dim=1, keepdim=True)
        return F.relu(queries @ negatives.T - positive + margin).mean()


def main(source: str, target: str, form: str, how: str) -> None:
    with np.load(source) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = {
        name.removeprefix("weight."): x for name, x in arrays.items() if name.startswith("weight.")
    }
    layers = [
        [arrays[f"{name}.{i}"] for name in ("nodes", "neighbours", "weights")]
        for i in range(int(arrays["layers"]))
    ]
    message_width, width = weights["message.0.weight"].shape
    model = PinSage(form, width, message_width, len(weights["out.weight"]), len(layers))
    model.load_state_dict(weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(arrays["rate"]), fused=True)
    function = torch.compile(model) if how == "compiled" else model

    def step():
        optimizer.zero_grad()
        loss = function(arrays["content"], layers, int(arrays["pairs"]), float(arrays["margin"]))
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step()
    gradients = {name: x.grad for name, x in model.named_parameters()}
    np.savez(target, loss=first, **gradients)
    for _ in sys.stdin:
        for _ in range(2):
            start = time.perf_counter()
            step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
