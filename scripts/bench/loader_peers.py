"""What the loader is measured beside: gluonts, uni2ts, webdataset, a bare copy, and files behind a slow web server.

Every peer is given its best case: gluonts and uni2ts hold all series in memory, nothing is padded, and none of them has
to make all that a row of ours holds (the mask of training, ids of the series, groups of variates kept together).
"""

from __future__ import annotations

import http.server
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH = 32
"""Windows in a batch: the variates of one row."""
PATCH = 32


class Side(NamedTuple):
    """One contender: an endless stream of batches, and the observed points of one of them."""

    batches: Iterator[Any]
    points: Callable[[Any], int]
    skip: int = 1
    """Batches that may have been made before a round begins."""


class Peer(NamedTuple):
    """How to make a peer's side from (folder of shards, every variate as float32 [T], steps of a window)."""

    make: Callable[[Path, Sequence[np.ndarray], int], Side]
    name: str
    target: str
    missing: str = "make bench-peers"
    """What to do where it cannot be imported."""


def gluonts(folder: Path, variates: Sequence[np.ndarray], length: int) -> Side:
    """The training loader of its torch estimators (here PatchTST's, the leanest), one window a series and pass.

    Its own defaults also draw windows that begin before the series: 3-4 times fewer observed points a second.
    """
    import pandas as pd
    import torch
    from gluonts.dataset.loader import as_stacked_batches
    from gluonts.itertools import Cyclic
    from gluonts.transform import (
        AddObservedValuesIndicator,
        ExpectedNumInstanceSampler,
        InstanceSplitter,
        SelectFields,
        TransformedDataset,
    )

    start, horizon = pd.Period("2024-01-01", "h"), length // 32
    data = [{"item_id": str(i), "start": start, "target": x} for i, x in enumerate(variates)]
    indicator = AddObservedValuesIndicator(target_field="target", output_field="observed_values")
    splitter = InstanceSplitter(
        target_field="target",
        is_pad_field="is_pad",
        start_field="start",
        forecast_start_field="forecast_start",
        instance_sampler=ExpectedNumInstanceSampler(num_instances=1, min_past=length - horizon, min_future=horizon),
        past_length=length - horizon,
        future_length=horizon,
        time_series_fields=["observed_values"],
    )
    fields = ["past_target", "past_observed_values", "future_target", "future_observed_values"]
    known = TransformedDataset(data, SelectFields(["item_id", "start", "target"]) + indicator)
    windows = splitter.apply(Cyclic(known).stream(), is_train=True)
    batches = as_stacked_batches(windows, batch_size=WIDTH, field_names=fields, output_type=torch.tensor)
    return Side(iter(batches), lambda b: sum(int(torch.count_nonzero(b[name])) for name in fields[1::2]))


def uni2ts(folder: Path, variates: Sequence[np.ndarray], length: int) -> Side:
    """Moirai's pretraining transforms and packing loader, each variate a series, one patch size, whole windows."""
    from uni2ts.data.dataset import TimeSeriesDataset
    from uni2ts.data.indexer import Indexer
    from uni2ts.data.loader import DataLoader, PackCollate
    from uni2ts.transform import (
        AddObservedMask,
        AddTimeIndex,
        AddVariateIndex,
        DummyValueImputation,
        FlatPackCollection,
        FlatPackFields,
        GetPatchSize,
        ImputeTimeSeries,
        MaskedPrediction,
        PackFields,
        PatchCrop,
        Patchify,
        SampleDimension,
        SelectFields,
        SequencifyField,
    )

    class Memory(Indexer):
        """Its own indexer needs an older version of datasets."""

        def __len__(self) -> int:
            return len(variates)

        def _getitem_int(self, idx: int) -> dict[str, Any]:
            return {"target": variates[idx], "freq": "D"}  # one whose patches may have 32 steps

        def _getitem_iterable(self, idx: Any) -> dict[str, Any]:
            raise NotImplementedError

    patches, target = length // PATCH, ("target",)
    ids = {"expected_ndim": 3, "collection_type": dict}
    fields = ("target", "observed_mask", "time_id", "variate_id", "prediction_mask", "patch_size")
    transform = (
        SampleDimension(max_dim=128, fields=target)
        + GetPatchSize(min_time_patches=patches, patch_sizes=(PATCH,))
        + PatchCrop(min_time_patches=patches, max_patches=patches, will_flatten=True, fields=target)
        + PackFields(output_field="target", fields=target, feat=False)
        + AddObservedMask(fields=target, observed_mask_field="observed_mask", collection_type=dict)
        + ImputeTimeSeries(fields=target, imputation_method=DummyValueImputation(value=0.0))
        + Patchify(max_patch_size=PATCH, fields=("target", "observed_mask"))
        + AddVariateIndex(fields=target, variate_id_field="variate_id", max_dim=128, randomize=True, **ids)
        + AddTimeIndex(fields=target, time_id_field="time_id", **ids)
        + MaskedPrediction(
            min_mask_ratio=0.15,
            max_mask_ratio=0.5,
            target_field="target",
            truncate_fields=("variate_id", "time_id", "observed_mask"),
            prediction_mask_field="prediction_mask",
            expected_ndim=3,
        )
        + FlatPackCollection(field="variate_id", feat=False)
        + FlatPackCollection(field="time_id", feat=False)
        + FlatPackCollection(field="prediction_mask", feat=False)
        + FlatPackCollection(field="observed_mask", feat=True)
        + FlatPackFields(output_field="target", fields=target, feat=True)
        + SequencifyField(field="patch_size", target_field="target")
        + SelectFields(fields=list(fields))
    )
    collate = PackCollate(max_length=patches, seq_fields=fields, target_field="target")
    dataset = TimeSeriesDataset(Memory(), transform)
    loader = DataLoader(dataset, batch_size=WIDTH, cycle=True, shuffle=True, collate_fn=collate)
    return Side(iter(loader), lambda b: int(b["observed_mask"].sum()))


def webdataset(folder: Path, variates: Sequence[np.ndarray], length: int) -> Side:
    """Its usual pipeline over the tars of `folder`: resample shards, shuffle, decode, one crop a series, batch."""
    import webdataset as wds

    random = np.random.default_rng(0)

    def crop(samples: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for (values,) in samples:
            start = random.integers(values.shape[1] - length + 1)
            for window in values[:, start : start + length]:
                observed = np.isfinite(window)
                yield np.where(observed, window, np.float32(0)), observed

    def stack(windows: Any) -> tuple[np.ndarray, ...]:
        return tuple(map(np.stack, zip(*windows, strict=True)))

    tars = sorted(map(str, folder.glob("*.tar")))
    # only the values: reading the json beside them would cost it more
    stream = wds.WebDataset(tars, resampled=True, shardshuffle=False, select_files=lambda name: name.endswith(".npy"))
    stream = stream.shuffle(500, initial=500).decode().to_tuple("npy").compose(crop)
    return Side(iter(stream.batched(WIDTH, collation_fn=stack)), lambda b: int(np.count_nonzero(b[1])))


def mapped(folder: Path, variates: Sequence[np.ndarray], length: int) -> Iterator[list[np.ndarray]]:
    """Random windows of one mapped array, 32 at a time."""
    file = folder.with_suffix(".flat")
    np.concatenate(variates).tofile(file)
    flat = np.asarray(np.memmap(file, np.float32, "r"))  # an ndarray: slices of a memmap cost more
    random = np.random.default_rng(0)
    while True:
        starts = random.integers(len(flat) - length + 1, size=WIDTH).tolist()
        yield [flat[start : start + length] for start in starts]


def stacked(folder: Path, variates: Sequence[np.ndarray], length: int) -> Side:
    """Windows sliced from a mapped array and stacked, with the mask of what is observed and zeros elsewhere: the least
    that a model which takes missing values needs."""

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for windows in mapped(folder, variates, length):
            values = np.stack(windows)
            observed = np.isfinite(values)
            yield np.where(observed, values, np.float32(0)), observed

    return Side(batches(), lambda b: int(np.count_nonzero(b[1])))


def copies(folder: Path, variates: Sequence[np.ndarray], length: int) -> Side:
    """Copies of such windows, and nothing else."""
    return Side(map(np.stack, mapped(folder, variates, length)), lambda b: int(np.count_nonzero(np.isfinite(b))))


PEERS = (
    Peer(gluonts, "gluonts InstanceSplitter, in memory", ">= 3"),
    # it asks for torch < 2.5, so an ordinary install would bring another torch, and its CUDA libraries
    Peer(uni2ts, "uni2ts packing, in memory", ">= 3", ".venv-peers/bin/pip install --no-deps uni2ts einops jaxtyping"),
    Peer(webdataset, "webdataset, one crop a series", ">= 5"),
    Peer(stacked, "memmap floor: 32 slices stacked, masks", ">= 0.4"),
    Peer(copies, "32 slices stacked, nothing else", ">= 0"),
)


class Slow(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, whole or one range at a time; every answer waits as if the server were far away."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def __init__(self, *args: Any, latency: float, **kwargs: Any):
        self.latency = latency
        super().__init__(*args, **kwargs)

    def send_head(self) -> Any:
        time.sleep(self.latency)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            return super().send_head()
        size = path.stat().st_size
        first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.range = first, last - first + 1
        return path.open("rb")

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if first_and_size := self.__dict__.pop("range", None):
            first, size = first_and_size
            source.seek(first)
            outputfile.write(source.read(size))
            outputfile.flush()
        else:
            super().copyfile(source, outputfile)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave."""


def serve(folder: str, latency: float, ready: Any) -> None:
    """Serve until the process is ended; sends its port."""
    server = Server(("127.0.0.1", 0), partial(Slow, directory=folder, latency=latency))
    ready.send(server.server_address[1])
    with suppress(KeyboardInterrupt):
        server.serve_forever()
