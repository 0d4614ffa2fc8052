"""SASRec of RecTools on arrays of benchmarks/real_logs.py, which starts this in .venv-peers.

    .venv-peers/bin/python benchmarks/rectools_sasrec.py IN.npz OUT.npz

Settings are RecTools' defaults but for two: a history is as long as PinnerFormer's, and the softmax
is RecTools' sampled one, since the full one takes two cores half an hour an epoch on globo.
Training stops early, as in its training guide: on the loss of the last action of a tenth of the
users; the best epoch is kept. Users without an action on an item that the model knows are shown
what is popular.
"""

import pathlib
import sys
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.utils import leave_one_out_mask

K = 10
PATIENCE, MAX_EPOCHS, NEGATIVES = 3, 100, 64


def main(source: str, target: str) -> None:
    warnings.simplefilter("ignore")  # Lightning's advice, and that some users are cold
    arrays = np.load(source)
    train = interactions(arrays["user"], arrays["item"], arrays["time"])
    started = time.perf_counter()
    model = fit(train, int(arrays["length"]))
    seconds = time.perf_counter() - started

    popularity = train[Columns.Item].value_counts()
    known = model.data_preparator.get_known_item_ids()  # users with one action are not learned from
    rows = np.full((len(arrays["window"]), K), -1)
    for window, index in enumerate(arrays["index"]):
        of_window = np.flatnonzero(arrays["window"] == window)
        part = np.flatnonzero(np.isin(arrays["history_query"], of_window))
        seen = interactions(arrays["history_query"][part], arrays["history_item"][part], part)
        candidates = popularity.index[index[popularity.index]]
        warm = seen.loc[seen[Columns.Item].isin(known), Columns.User].unique()
        cold = np.setdiff1d(of_window, warm)
        rows[cold] = candidates[:K]
        if len(warm):
            found = model.recommend(
                warm,
                Dataset.construct(seen),
                k=K,
                filter_viewed=True,
                items_to_recommend=np.intersect1d(candidates, known),
            )
            rows[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
    np.savez(target, rows=rows, seconds=seconds)


def interactions(user: np.ndarray, item: np.ndarray, seconds: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            Columns.User: user,
            Columns.Item: item,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(seconds, unit="s"),
        }
    )


def fit(train: pd.DataFrame, length: int) -> SASRecModel:
    pl.seed_everything(0)
    loss = SASRecModel.val_loss_name
    with tempfile.TemporaryDirectory() as directory:

        def get_trainer() -> pl.Trainer:
            return pl.Trainer(
                max_epochs=MAX_EPOCHS,
                callbacks=[
                    pl.callbacks.EarlyStopping(loss, patience=PATIENCE, verbose=True),
                    pl.callbacks.ModelCheckpoint(directory, monitor=loss, save_weights_only=True),
                ],
                accelerator="auto",
                devices=1,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )

        tenth = train[Columns.User].nunique() // 10
        model = SASRecModel(
            session_max_len=length,
            loss="sampled_softmax",
            n_negatives=NEGATIVES,
            get_val_mask_func=leave_one_out_mask,
            get_trainer_func=get_trainer,
            get_val_mask_func_kwargs={"val_users": tenth},
        )
        model.fit(Dataset.construct(train))
        (best,) = pathlib.Path(directory).glob("*.ckpt")
        model.load_weights_from_checkpoint(best)
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
