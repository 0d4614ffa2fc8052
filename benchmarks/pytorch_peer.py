"""PinnerFormer's train step in PyTorch, on weights and batches of benchmarks/step.py.

    .venv-peers/bin/python benchmarks/pytorch_peer.py IN.npz OUT.npz plain|chunked packed|alone

step.py starts it, once for each form of the loss and each layout of the windows, and writes lines
to its standard input. After the first one gradients of the batch "check" are written to OUT.npz,
and the answer says how the step was compiled. Then each line is a number of steps, and the answer
the seconds of a step, those of all threads, and the peak memory so far, in bytes: CUDA's where
there is a GPU, else the process's.

Windows alone begin in the first cell of a row, so that causal attention does not see the padding.
In packed rows attention is PyTorch's flex_attention, which leaves out blocks that a mask hides. On
a CPU that has no backward pass, and nested tensors have no attention: there it is
scaled_dot_product_attention with a mask.
"""

import json
import math
import resource
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from torch.utils.checkpoint import checkpoint

CHUNK = 1024  # negatives at once, in the chunked form
DAY = 24 * 3600
ABSOLUTE = [900 * 2**i for i in range(7)] + [DAY, 7 * DAY, 28 * DAY, 365 * DAY]  # seconds
RELATIVE = np.geomspace(1, 28 * DAY, 32).tolist()


def log_seconds(t):
    return torch.log1p(t.float())[..., None] / 16


class TimeEncoding(nn.Module):
    def __init__(self, periods, divided):
        super().__init__()
        self.divisor = 4 if divided else 1
        periods = torch.tensor(periods, dtype=torch.float64)
        self.register_buffer("periods", periods, persistent=False)
        self.phases = nn.Parameter(torch.zeros(2, len(periods)))

    def forward(self, t):
        angles = (2 * math.pi * (t.double()[..., None] / self.periods).frac()).float()
        cosines, sines = torch.cos(angles + self.phases[0]), torch.sin(angles + self.phases[1])
        return torch.cat([cosines, sines, 4 * log_seconds(t)], dim=-1) / self.divisor


class MLP(nn.Module):
    def __init__(self, width, hidden, out):
        super().__init__()
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x):
        return self.out(F.gelu(self.hidden(x), approximate="tanh"))


def visible_cells(end):
    """What `attend` needs: a cell sees itself and earlier cells of its window."""
    rows, length = end.shape
    if end.is_cuda:

        def visible(row, head, query, key):
            return (end[row, query] == end[row, key]) & (key <= query)

        return flex_attention.create_block_mask(visible, rows, None, length, length)
    ones = torch.ones(length, length, dtype=torch.bool)
    return ((end[:, :, None] == end[:, None]) & ones.tril())[:, None]


def attend(query, key, value, visible):
    """Attention to the visible cells; None: to all cells before."""
    if visible is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    if query.is_cuda:
        return flex_attention.flex_attention(query, key, value, block_mask=visible)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-6)
        self.ffn_in = nn.Linear(width, 4 * width)
        self.ffn_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, visible):
        rows, length, width = x.shape
        y = self.query_key_value(self.attention_norm(x))
        y = y.view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = attend(*y.unbind(), visible)
        x = x + self.dropout(self.attention_out(y.transpose(1, 2).reshape(x.shape)))
        y = F.gelu(self.ffn_in(self.ffn_norm(x)), approximate="tanh")
        return x + self.dropout(self.ffn_out(y))


class CountMinSketch(nn.Module):
    """pinjax.losses.count_min_sketch without decay, in 64-bit integers."""

    def __init__(self, multipliers, offsets, width):
        super().__init__()
        self.register_buffer("multipliers", multipliers, persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)
        table = torch.zeros(len(offsets), width, dtype=torch.int64)
        self.register_buffer("table", table, persistent=False)
        self.shift = 32 - int(math.log2(width))

    def columns(self, ids):
        ids = ids.clamp(min=0)
        hashes = sum(self.multipliers[:, i, None] * (ids >> 8 * i & 0xFF) for i in range(4))
        return (hashes + self.offsets[:, None] & 0xFFFFFFFF) >> self.shift

    def add(self, ids):
        counts = (ids >= 0).long().expand(len(self.table), -1)
        self.table.scatter_add_(1, self.columns(ids), counts)

    def probability(self, ids):
        counts = self.table.gather(1, self.columns(ids.flatten())).amin(dim=0)
        return (counts / self.table[0].sum()).view(ids.shape)


class PinnerFormer(nn.Module):
    """Both towers and the loss."""

    def __init__(self, config, loss, layout, items, content, sketch, actions, surfaces):
        super().__init__()
        model, self.negatives = config["model"], config["loss"]
        self.chunked, self.packed = loss == "chunked", layout == "packed"
        self.items, self.content, self.sketch, self.remat = items, content, sketch, model["remat"]
        width, item_dim = model["width"], model["id_dim"]
        if content is not None:
            item_dim += content.shape[1]
        if model["id_dim"]:
            self.id = nn.Embedding(items, model["id_dim"])
        self.action = nn.Embedding(actions, 16, padding_idx=0)
        self.surface = nn.Embedding(surfaces, 16, padding_idx=0)
        divided = model["divided_time"]
        self.time = TimeEncoding(ABSOLUTE, divided)
        self.age, self.gap = (TimeEncoding(RELATIVE, divided) for _ in range(2))
        times = 3 + 2 * (len(ABSOLUTE) + 2 * len(RELATIVE))
        self.projection = nn.Linear(item_dim + 2 * 16 + 1 + times, width)
        self.positions = nn.Parameter(torch.zeros(config["data"]["length"], width))
        self.dropout = nn.Dropout(model["dropout"])
        self.blocks = nn.ModuleList(
            Block(width, model["heads"], model["dropout"]) for _ in range(model["layers"])
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = MLP(width, width, model["embedding_dim"])
        self.pin_tower = MLP(item_dim, model["pin_hidden"], model["embedding_dim"])
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def item_input(self, rows):
        exists, rows, parts = (rows >= 0)[..., None], rows.clamp(min=0), []
        if self.content is not None:
            content = F.normalize(self.content[rows].float(), dim=-1)
            parts.append(content * self.content.shape[1] ** 0.5)
        if hasattr(self, "id"):
            parts.append(self.id(rows) * self.id.embedding_dim**0.5)
        return torch.cat(parts, dim=-1) * exists

    def embed_items(self, rows):
        return F.normalize(self.pin_tower(self.item_input(rows)).float(), dim=-1)

    def embed_users(self, batch):
        """User embeddings at the positions that have a label."""
        time, end = batch["time"], batch["end"]
        length = end.shape[1]
        last = time.gather(1, end.clamp(min=0))
        same = end[:, 1:] == end[:, :-1]
        gap = F.pad(torch.where(same, time.diff(dim=1), 0), (1, 0))
        features = [
            self.item_input(batch["item"]),
            *(self.action(batch["action"]), self.surface(batch["surface"])),
            *(log_seconds(batch["duration"]), self.time(time)),
            *(self.age(last - time), self.gap(gap)),
        ]
        x = self.projection(torch.cat(features, dim=-1))
        place = length - 1 - (end - torch.arange(length, device=end.device))
        # Padding has none, and its place is beyond the last one.
        x = self.dropout(x + F.embedding(place.clamp(max=length - 1), self.positions).to(x.dtype))
        visible = visible_cells(end) if self.packed else None
        for block in self.blocks:
            if self.remat:
                x = checkpoint(block, x, visible, use_reentrant=False)
            else:
                x = block(x, visible)
        x = F.embedding(batch["label_position"], self.norm(x).flatten(0, 1))
        return F.normalize(self.head(x).float(), dim=-1)

    def draw(self, labels):
        """In-batch negatives, some of the labels, and random ones."""
        labels = labels.flatten()
        priority = torch.where(labels >= 0, torch.rand(labels.shape, device=labels.device), -1)
        chosen = labels[
            priority.topk(min(self.negatives["num_in_batch_negatives"], len(labels))).indices
        ]
        count = (self.negatives["num_random_negatives"],)
        return chosen, torch.randint(self.items, count, device=labels.device)

    def log_sum_exp(self, queries, scale, own, embeddings, ids, log_q):
        """Over the negatives (n,): (rows, pairs) of queries (rows, pairs, dim)."""
        logits = queries @ embeddings.T * scale - log_q
        excluded = (own[..., None] == ids).any(dim=1) | (ids < 0)
        return logits.masked_fill(excluded[:, None], -1e30).logsumexp(dim=-1)

    def forward(self, batch, chosen=None, random=None):
        labels = batch["label_item"]
        exists, same = labels >= 0, batch["same_user"]
        # All labels of the row's user, which may have several rows.
        own = torch.where(same[..., None] >= 0, labels[same.clamp(min=0)], -1).flatten(1)
        if chosen is None:
            chosen, random = self.draw(labels)
        ids = torch.cat([chosen, random])
        queries = self.embed_users(batch)
        positives, embeddings = self.embed_items(labels), self.embed_items(ids)

        with torch.no_grad():
            self.sketch.add(labels.flatten())

            def log_q(ids):
                expected = (chosen >= 0).sum() * self.sketch.probability(ids)
                return torch.where(ids >= 0, (expected + len(random) / self.items).log(), 0.0)

            positive_log_q, negatives = log_q(labels), (embeddings, ids, log_q(ids))

        # Logits are float32, as pinjax's: with a learned temperature bfloat16 would round them.
        with torch.autocast(labels.device.type, enabled=False):
            scale = 1 / (0.01 + self.log_temperature.exp())
            positive = (queries * positives).sum(dim=-1) * scale - positive_log_q
            if self.chunked:
                chunks = zip(*(x.split(CHUNK) for x in negatives), strict=True)
                parts = [
                    checkpoint(self.log_sum_exp, queries, scale, own, *chunk, use_reentrant=False)
                    for chunk in chunks
                ]
                negative = torch.stack(parts).logsumexp(dim=0)
            else:
                negative = self.log_sum_exp(queries, scale, own, *negatives)
            weights = exists / (own >= 0).sum(dim=1, keepdim=True).clamp(min=1)
            return (F.softplus(negative - positive) * weights).sum() / weights.sum()


def make_optimizer(model, train):
    """AdamW with weight decay for the kernels of dense layers; its rate is the peak throughout."""
    kernels = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
    others = [parameter for parameter in model.parameters() if parameter not in kernels]
    groups = [{"params": list(kernels)}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=train["learning_rate"],
        betas=(0.9, 0.98),  # as pinjax.training.step
        weight_decay=train["weight_decay"],
        fused=True,
    )


def main(source: str, target: str, loss: str, layout: str) -> None:
    sys.stdin.readline()  # before the first line there is no file to read
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with np.load(source) as file:
        config = json.loads(str(file["config"]))
        arrays = {x: torch.from_numpy(file[x]).to(device) for x in file.files if x != "config"}

    def named(prefix):
        return {x.removeprefix(prefix): y for x, y in arrays.items() if x.startswith(prefix)}

    content, weights = arrays.get("content"), named("weight.")
    if content is not None:
        content = content.view(torch.bfloat16)  # NumPy has no such type
    sizes = [len(weights[f"{name}.weight"]) for name in ("action", "surface")]
    width = config["loss"]["sketch_width"]
    sketch = CountMinSketch(arrays["multipliers"], arrays["offsets"], width)
    items = int(arrays["items"])
    model = PinnerFormer(config, loss, layout, items, content, sketch, *sizes).to(device)
    model.load_state_dict(weights)

    model.eval()  # dropout is random
    value = model(named("check."), arrays["chosen"], arrays["random"])
    value.backward()
    gradients = {name: x.grad.cpu().numpy() for name, x in model.named_parameters()}
    np.savez(target, loss=value.item(), **gradients)

    model.train()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TensorFloat32, as XLA's
    low = config["model"]["dtype"] == "bfloat16"
    batches = [named(f"batch.{i}.") for i in range(int(arrays["batches"]))]
    optimizer = make_optimizer(model, config["train"])

    def run(function, steps):
        for i in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=low):
                loss = function(batches[i % len(batches)])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config["train"]["clip_norm"])
            optimizer.step()
        return loss.item()  # when all is done

    function, how = torch.compile(model), f"compiled for {device}"
    try:
        run(function, 2)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        function, how = model, f"eager, since {type(error).__name__}: {reason}; on {device}"
        run(function, 2)
    print(how, flush=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for line in sys.stdin:
        steps = int(line)
        start, cpu = time.perf_counter(), time.process_time()
        run(function, steps)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
        print(seconds / steps, cpu / steps, peak, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
