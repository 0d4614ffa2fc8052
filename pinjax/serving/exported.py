"""Embeds by what `pinjax.export` wrote, without the data set and without what training needs.

    exported = load("exports/pinnerformer")
    vectors = exported.embed_users([[{"item": 17, "action": "save", "time": 1735689600}]])
    ids, items = exported.items()

A directory has, beside the programs of `jax.export`:

    manifest.json        the run, its data set, and what the programs' inputs are made from
    params.safetensors   the parameters
    NAME.npy             tables, which are memory-mapped
    items.parquet        own ids of items, in order of the tables' rows
    checksums.json       of all files

Anything unknown gets a zero vector: an empty history or text, or an item that had no vector when it
was embedded. All vectors are float32.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import export
from safetensors import numpy as safetensors

from pinjax import checksums, ragged
from pinjax.data import parquet
from pinjax.data.text import pretrained, tokens, word_ids
from pinjax.errors import InputError

FORMAT = 1
MANIFEST, PARAMS, PROGRAM = "manifest.json", "params.safetensors", "{}.jax"
IDS, TABLE = "{}.parquet", "{}.npy"
VOCABULARY, TOKENIZER = "vocabulary.parquet", "tokenizer.json"
ITEM_VECTORS = "item_vectors"
_MOST = 256  # rows at a time

Action = Mapping[str, Any]


def load(directory: epath.PathLike, verify: bool = True) -> "Exported":
    """Opens a directory of `pinjax.export`.

    Args:
      directory: on this machine.
      verify: whether checksums of its files are compared.

    Raises:
      InputError: if there is no such directory, or it is damaged.
    """
    directory = epath.Path(directory)
    if not (directory / MANIFEST).exists():
        raise InputError(f"{directory}: nothing exported by pinjax.export")
    if verify:
        checksums.verify(directory)
    manifest = checksums.read(directory / MANIFEST)
    if manifest["format"] != FORMAT:
        raise InputError(f"{directory}: format {manifest['format']}, expected {FORMAT}")
    return Exported(directory, manifest)


class Exported:
    """An exported run. Threads may share it.

    A program is compiled when it is first called with so many rows, which are padded to a power of
    two, and to 256 at most.

    Attributes:
      directory: that it is in.
      manifest: as it was written.
      item_ids: own ids of the items, by row.
    """

    def __init__(self, directory: epath.Path, manifest: Mapping[str, Any]):
        self.directory, self.manifest = directory, manifest
        self.item_ids = self._ids("items")
        self._rows = {item: row for row, item in enumerate(self.item_ids)}
        self._params = jax.device_put(safetensors.load_file(directory / PARAMS))
        self._programs = {name: self._program(name) for name in manifest["inputs"]}

    def __contains__(self, item: int | str) -> bool:
        """Whether an own id is one of the items."""
        return item in self._rows

    def embed_users(
        self, histories: Sequence[Sequence[Action]], as_of: int | None = None
    ) -> np.ndarray:
        """Embeds users from their histories.

        Args:
          histories: of each user the actions, in any order: mappings with `item`, an own id;
            `time`, unix seconds, unless the data set has none; and `action` and `surface`, names of
            the data set, and `duration`, in seconds, where they are known. Actions on unknown items
            are ignored; other names are the vocabularies' "unknown".
          as_of: unix seconds; later actions are ignored. None: now.

        Returns:
          float32 (users, dim).

        Raises:
          InputError: if users cannot be embedded, or an action lacks its item or its time.
        """
        about = self._inputs("users")
        as_of = int(time.time()) if as_of is None else as_of
        names = {field: about[f"{field}s"] for field in ("action", "surface")}
        codes = {field: {name: row for row, name in enumerate(x)} for field, x in names.items()}
        shapes, length = self._shapes("users"), about["length"]

        def prepare(histories: Sequence[Sequence[Action]]) -> tuple[dict[str, np.ndarray], Any]:
            batch = {
                name: np.full((len(histories), length), -(name == "item"), shape.dtype)
                for name, shape in shapes.items()
            }
            for row, history in enumerate(histories):
                if actions := self._known(history, as_of, about, codes["action"]):
                    last = batch["item"][row].size - len(actions)
                    batch["item"][row, last:] = [self._rows[a["item"]] for a in actions]
                    batch["time"][row, last:] = [a["time"] for a in actions]
                    batch["duration"][row, last:] = [a.get("duration") or 0 for a in actions]
                    for field, rows in codes.items():
                        batch[field][row, last:] = [rows.get(a.get(field), 0) for a in actions]
            batch["request_time"] = np.maximum(batch["time"], np.uint32(as_of))
            return batch, batch["item"][:, -1] >= 0

        return self._embed("users", histories, prepare, empty=())

    def _known(
        self, history: Sequence[Action], as_of: int, about: Any, codes: Mapping[str, int]
    ) -> list[Action]:
        """The last actions on known items up to a time, oldest first, without repeats."""
        try:
            known = [action for action in history if action["item"] in self._rows]
            if about["has_times"]:
                first = {}
                for action in sorted(known, key=lambda action: action["time"]):
                    if action["time"] <= as_of:
                        code = codes.get(action.get("action"), 0)
                        first.setdefault((action["item"], action["time"], code), action)
                known = list(first.values())
            else:
                known = [{**action, "time": rank} for rank, action in enumerate(known)]
        except (KeyError, TypeError) as error:
            lacks = error if isinstance(error, KeyError) else "number as its time, or no id"
            raise InputError(f"an action of a history has no {lacks}") from None
        return known[-about["length"] :]

    def embed_items(self, ids: Sequence[int | str]) -> np.ndarray:
        """The vectors of items: of the item tower, or as they were embedded for the export.

        Args:
          ids: own ids.

        Returns:
          float32 (items, dim).

        Raises:
          InputError: if an item is unknown.
        """
        unknown = [item for item in ids if item not in self._rows]
        if unknown:
            raise InputError(f"item {unknown[0]!r} is not in the catalogue of {self.directory}")
        rows = [self._rows[item] for item in ids]
        if "items" not in self._programs:
            return np.asarray(self._table(ITEM_VECTORS)[rows], np.float32)

        def prepare(rows: Sequence[int]) -> tuple[dict[str, np.ndarray], Any]:
            rows = np.array(rows, np.int32)
            return {"item": rows}, rows >= 0

        return self._embed("items", rows, prepare, empty=-1)

    def items(self) -> tuple[list[int | str], np.ndarray]:
        """Own ids and vectors of all items that have a vector, for an index."""
        vectors = self.embed_items(self.item_ids)
        known = np.flatnonzero(vectors.any(axis=1))
        return [self.item_ids[row] for row in known], vectors[known]

    def embed_products(self, products: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Embeds products, which need not be in the catalogue.

        Args:
          products: mappings with `texts`, a mapping from the names of text features to texts, and
            `images`, a list of vectors of the data set's space, the first ones of which are read.

        Returns:
          float32 (products, dim).

        Raises:
          InputError: if products cannot be embedded, or a vector has another dimension.
        """
        about = self._inputs("products")
        names, slots, dim = about["texts"], about["image_slots"], about["image_dim"]

        def prepare(products: Sequence[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], Any]:
            inputs, known = {}, np.zeros(len(products), bool)
            if slots:
                mask = np.zeros((len(products), slots), bool)
                images = np.zeros((*mask.shape, dim), np.float32)
                for row, product in enumerate(products):
                    for slot, image in enumerate(product.get("images", ())[:slots]):
                        if len(image) != dim:
                            raise InputError(f"an image of {len(image)} numbers, expected {dim}")
                        images[row, slot], mask[row, slot] = image, True
                inputs |= {"images": images, "image_mask": mask}
                known |= mask.any(axis=1)
            if names:
                texts = [p.get("texts", {}).get(name, "") for p in products for name in names]
                found, has_tokens = _padded(self._encode(texts), about["block"])
                inputs |= found
                known |= has_tokens.reshape(-1, len(names)).any(axis=1)
            return {**inputs, "known": known}, known

        return self._embed("products", products, prepare, empty={})

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts of searches; of one that is longer than all in training only the beginning.

        Returns:
          float32 (texts, dim).

        Raises:
          InputError: if texts cannot be embedded.
        """
        about = self._inputs("texts")

        def prepare(texts: Sequence[str]) -> tuple[dict[str, np.ndarray], Any]:
            known = np.array([bool(text.strip()) for text in texts])
            if about["kind"] == "bag":
                first = tokens.first(self._encode(texts), about["longest"])
                inputs = _padded(first, about["block"])[0] | {"known": known}
            elif about["kind"] == "words":
                encoded = self._vocabulary.encode(texts)
                ids = word_ids.of_texts(encoded, about["words"], about["length"])
                inputs = dict(zip(("ids", "mask"), ids, strict=True))
            else:
                inputs = dict(zip(("ids", "mask"), self._tokenizer(texts), strict=True))
            if "vectors" in self._shapes("texts"):
                vectors, rows = self._table("query_vectors"), self._searches
                inputs["vectors"] = np.zeros((len(texts), vectors.shape[1]), np.float32)
                for row, text in enumerate(texts):
                    if (found := rows.get(text.strip())) is not None:
                        inputs["vectors"][row] = vectors[found]
            return inputs, known

        return self._embed("texts", texts, prepare, empty="")

    def embed_groups(self, groups: Sequence[Sequence[int | str]]) -> np.ndarray:
        """Embeds groups of items, such as a board, a basket, or what a user has liked.

        Args:
          groups: own ids of the items of each. Of many the last ones are read, and unknown ones
            are ignored.

        Returns:
          float32 (groups, dim).

        Raises:
          InputError: if groups cannot be embedded.
        """
        length = self._inputs("groups")["length"]

        def prepare(groups: Sequence[Sequence[int | str]]) -> tuple[dict[str, np.ndarray], Any]:
            items = np.full((len(groups), length), -1, np.int32)
            for row, group in enumerate(groups):
                known = [self._rows[item] for item in group if item in self._rows][-length:]
                items[row, : len(known)] = known
            return {"item": items}, items[:, 0] >= 0

        return self._embed("groups", groups, prepare, empty=())

    def _embed(
        self,
        name: str,
        things: Sequence[Any],
        prepare: Callable[[Sequence[Any]], tuple[dict[str, np.ndarray], np.ndarray]],
        empty: Any,
    ) -> np.ndarray:
        """The vectors of things; zeros for those of which `prepare` says that nothing is known."""
        call, exported, tables = self._programs[name]
        parts = [np.zeros((0, exported.out_avals[0].shape[1]), np.float32)]
        for start in range(0, len(things), _MOST):
            some = things[start : start + _MOST]
            padding = ragged.power_of_two(len(some)) - len(some)
            inputs, known = prepare([*some, *[empty] * padding])
            vectors = call(self._params, tables, inputs)
            parts.append(np.where(known[:, None], vectors, 0)[: len(some)])
        return np.concatenate(parts)

    def _inputs(self, name: str) -> Any:
        if name not in self.manifest["inputs"]:
            known = ", ".join(self.manifest["inputs"]) or "only a lookup of items"
            raise InputError(f"{self.directory} does not embed {name}; it has {known}")
        return self.manifest["inputs"][name]

    def _program(self, name: str) -> tuple[Callable[..., jax.Array], export.Exported, Any]:
        """A program, what is known of it, and the tables that it reads, on the device."""
        exported = export.deserialize((self.directory / PROGRAM.format(name)).read_bytes())
        _, tables, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
        return jax.jit(exported.call), exported, {table: self._placed(table) for table in tables}

    def _shapes(self, name: str) -> dict[str, Any]:
        exported = self._programs[name][1]
        return jax.tree.unflatten(exported.in_tree, exported.in_avals)[0][2]

    @functools.cache  # noqa: B019, it lives as long as its service
    def _placed(self, name: str) -> jax.Array:
        return jax.device_put(self._table(name))

    @functools.cache  # noqa: B019
    def _table(self, name: str) -> np.ndarray:
        table = np.load(self.directory / TABLE.format(name), mmap_mode="r")
        return table.view(jax.numpy.dtype(self.manifest["tables"][name]))

    def _ids(self, name: str) -> list[int | str]:
        return parquet.read(self.directory / IDS.format(name))["id"].to_pylist()

    @functools.cached_property
    def _searches(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self._ids("searches"))}

    def _encode(self, texts: Sequence[str]) -> tokens.Ragged:
        """The token ids of texts."""
        encoded = self._vocabulary.encode(texts)
        if "token_ids" not in self.manifest["tables"]:
            return encoded
        return encoded._replace(tokens=self._table("token_ids")[encoded.tokens])

    @functools.cached_property
    def _vocabulary(self) -> tokens.Vocabulary:
        return tokens.Vocabulary.load(self.directory / VOCABULARY)

    @functools.cached_property
    def _tokenizer(self) -> pretrained.Tokenizer:
        return pretrained.Tokenizer(self.directory, self._inputs("texts")["length"])


def _padded(texts: tokens.Ragged, block: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tokens of all texts, padded to a number of blocks, and which texts have any."""
    lengths = np.diff(texts.offsets)
    segments = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    blocks = ragged.power_of_two(-(-len(segments) // block))
    padding = 0, blocks * block - len(segments)
    return {
        "tokens": np.pad(texts.tokens, padding),
        "segments": np.pad(segments, padding, constant_values=len(lengths)),
    }, lengths > 0
