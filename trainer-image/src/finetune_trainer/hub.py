"""A model or an adapter from the Hub into the cache: `python -m finetune_trainer.hub NAME REVISION CONFIG LIMITS...`.

sources.py starts this process and reads its outcome. It is a process of its own because nothing else ends a download
at once, with all its threads: when the launcher is stopped, and when its lease on the cache is lost. Of nodes that
share a cache one fills it, and the others wait for that.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name

from . import adapter_folder
from .errors import ModelRefused, RunError, SourceUnavailable
from .files import storage_failure
from .lease import Lease
from .patience import PatientClient
from .rank_processes import end_with_launcher
from .records import print_error
from .sources import FILES, IGNORED, LOST, MISTAKEN, MODEL_CONFIG, SMALL, Limits, quantisation

_ABANDONED_S = 24 * 3600.0
"""After which a part of a file that does not grow is removed: longer than clocks differ."""


def outcome(name: str, revision: str | None, config: str, limits: Limits) -> Path | RunError:
    """The folder in the cache with the files of the model, or why there is none.

    `config`: the file that a repository of this kind has; without it, no weights are downloaded.
    """
    label = name + (f"@{revision}" if revision else "")
    try:
        return _fetch(name, revision, label, config, limits)
    except RunError as error:
        return error
    except (httpx2.HTTPError, HFValidationError, OSError, RevisionResolutionError, RuntimeError) as error:
        return _refusal(label, error)


def _fetch(name: str, revision: str | None, label: str, config: str, limits: Limits) -> Path:
    """A Hub that is gone does not matter if the cache has all files."""
    client = partial(PatientClient, label, huggingface_hub.get_session().event_hooks)
    patience = 0.0 if _complete(name, revision, config) else limits.patience
    huggingface_hub.set_client_factory(partial(client, limits._replace(patience=patience)))
    try:
        commit = huggingface_hub.resolve_revision(name, revision=revision).resolved
    except (RunError, httpx2.HTTPError, RevisionResolutionError) as error:
        if known := _cached(name, revision, config):
            print_error(f"model {label}: the cache is used as it is: {error}")
            return known
        raise
    huggingface_hub.set_client_factory(partial(client, limits))
    return _fill(name, commit, label, config, limits)


def _fill(name: str, commit: str, label: str, config: str, limits: Limits) -> Path:
    lease, noticed = Lease(_repository(name, ".locks"), limits.stale), time.monotonic()
    while (folder := _complete(name, commit, config)) is None:
        try:
            mine = lease.acquire()
        except OSError as error:  # a cache that has everything may be read-only
            print_error(f"model {label}: no lease on the cache: {error}")
            return _transfer(name, commit, config)
        if mine:
            _clear(name)
            with lease.held(_Progress(name, label, limits).require, _stop):
                return _transfer(name, commit, config)
        if time.monotonic() - noticed > limits.notice:
            noticed, size = time.monotonic(), sum(blob.st_size for blob in _blobs(name))
            print_error(f"model {label}: waiting for the download by {lease.holder}, {size / 1e9:.1f} GB so far")
        time.sleep(limits.pause)
    return folder


def _clear(name: str) -> None:
    """Remove what killed downloads have left: parts of files, and locks, which paused processes may even hold.

    The library's locks only save transfers: every file is finished under a name of its own, and renamed.
    """
    for lock in _repository(name, ".locks").glob("*.lock"):
        lock.unlink(missing_ok=True)
    for part in _repository(name).glob("blobs/*.incomplete"):
        if time.time() - part.stat().st_mtime > _ABANDONED_S:
            part.unlink(missing_ok=True)


class _Progress:
    """Ends a download of which nothing arrives for longer than patience lasts: others wait for it."""

    def __init__(self, name: str, label: str, limits: Limits) -> None:
        self._name, self._label, self._limit = name, label, 2 * limits.patience
        self._blobs: list[tuple[int, int]] = []
        self._since = time.monotonic()

    def require(self) -> None:
        blobs = [(blob.st_size, blob.st_mtime_ns) for blob in _blobs(self._name)]
        if blobs != self._blobs:
            self._blobs, self._since = blobs, time.monotonic()
        if time.monotonic() - self._since > self._limit:
            _answer(
                SourceUnavailable(f"model {self._label}: nothing arrived for {self._limit:.0f} s; check the network")
            )
            os._exit(0)


def _stop() -> None:
    print_error("another process has taken the lease on the cache, so this download stops")
    os._exit(LOST)


def _complete(name: str, revision: str | None, config: str) -> Path | None:
    """The folder in the cache, if it certainly has all files."""
    try:
        huggingface_hub.get_cached_repo_tree(name, revision=revision)
    except CachedRepoTreeNotFoundError:  # the library then takes any folder for complete
        return None
    return _cached(name, revision, config)


def _cached(name: str, revision: str | None, config: str) -> Path | None:
    try:
        return _download(name, revision, FILES[config], local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _transfer(name: str, commit: str, config: str) -> Path:
    """What is refused has no weights downloaded."""
    small = _download(name, commit, SMALL)
    if not (small / config).is_file():
        raise ModelRefused(f"model {name}: it has no {config} on the Hub; {MISTAKEN[config]}")
    if config == MODEL_CONFIG:
        quantisation(small)
    else:
        adapter_folder.method(small)
    return _download(name, commit, FILES[config])


def _download(name: str, revision: str | None, files: list[str], *, local_files_only: bool = False) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=files,
            ignore_patterns=IGNORED,
            local_files_only=local_files_only,
        )
    )


def _repository(name: str, *below: str) -> Path:
    return Path(constants.HF_HUB_CACHE, *below, repo_folder_name(repo_id=name, repo_type="model"))


def _blobs(name: str) -> Iterator[os.stat_result]:
    """Files of the repository in the cache, and parts of them."""
    for path in sorted(_repository(name).glob("blobs/*")):
        try:
            yield path.stat()
        except FileNotFoundError:  # it was renamed
            continue


def _refusal(label: str, error: Exception) -> RunError:
    """Why a download failed. Where a model is neither on the Hub nor in the cache, the library reports the latter."""
    hidden = error.__cause__ if isinstance(error, LocalEntryNotFoundError | RevisionResolutionError) else None
    cause = hidden or error
    message = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
    if isinstance(cause, OfflineModeIsEnabled):
        return ModelRefused(
            f"model {label}: it is not in the cache and the Hub is switched off; unset HF_HUB_OFFLINE"
        )
    if isinstance(cause, RuntimeError | httpx2.TransportError):  # hf_xet's, which tries again itself, or a transfer's
        return SourceUnavailable(f"model {label}: the download failed: {message}; check the network and HF_ENDPOINT")
    return storage_failure(error) or ModelRefused(
        f"model {label}: {message}; check the name, and that the job has a token with read access (HF_TOKEN)"
    )


def _answer(found: Path | RunError) -> None:
    sys.stdout.buffer.write(pickle.dumps(found))
    sys.stdout.flush()


def main(name: str, revision: str, config: str, *limits: str) -> None:
    end_with_launcher()
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "8")  # hf_xet's own tries then last as long as ours
    _answer(outcome(name, revision or None, config, Limits(*map(float, limits))))


if __name__ == "__main__":
    main(*sys.argv[1:])
