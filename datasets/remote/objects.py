"""Files below a URL: S3 and whatever speaks it, Google, Azure, plain HTTP, a local folder; through obstore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from kineflow.datasets.manifest import StaleGeneration
from kineflow.datasets.store_error import StoreError
from kineflow.extras import require

COALESCE_BYTES = 1 << 18  # ranges closer than this are one request: latency costs more than the bytes between


class Missing(StoreError):
    """Nothing is at this path."""


class Objects:
    """Reads and writes by path below `url`; credentials and endpoints come from `options` or, as usual, from AWS_... variables.

    Every method raises StoreError with the URL and the server's answer when the server cannot be reached or refuses.
    """

    def __init__(self, url: str, **options: Any) -> None:
        """`options` are those of obstore.store.from_url (endpoint, access_key_id, secret_access_key, region, client_options)."""
        self.url = url.rstrip("/")
        self._obstore: Any = require("obstore", "to open stores at a URL")
        self._stores: Any = require("obstore.store", "to open stores at a URL")
        self._errors: Any = require("obstore.exceptions", "to open stores at a URL")
        try:
            self._store = self._stores.from_url(self.url, **_with_defaults(self.url, options))
        except (self._errors.BaseError, ValueError, TypeError) as error:
            raise StoreError(
                f"{url} cannot be opened ({str(error).splitlines()[0]}); give s3://bucket/path, gs://, az://, https:// or file:///"
            ) from error

    def get(self, path: str) -> bytes:
        """The whole object; StoreError when it is not there."""
        return self.get_tagged(path)[0]

    def get_tagged(self, path: str) -> tuple[bytes, str]:
        """The object and its entity tag."""
        try:
            found = self._obstore.get(self._store, path)
            return bytes(found.bytes()), str(found.meta["e_tag"] or "")
        except Exception as error:
            raise self._error(path, error) from error

    def ranges(self, path: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Parts of an object; neighbours within `COALESCE_BYTES` come in one request, several requests at once."""
        try:
            parts = self._obstore.get_ranges(
                self._store, path, starts=list(starts), lengths=list(lengths), coalesce=COALESCE_BYTES
            )
        except Exception as error:
            raise self._error(path, error) from error
        return [bytes(part) for part in parts]

    def put(self, path: str, data: bytes) -> None:
        """Write an object that nobody else writes; large ones go up in parts."""
        self._check_writable()
        try:
            self._obstore.put(self._store, path, data)
        except Exception as error:
            raise self._error(path, error) from error

    def put_if(self, path: str, data: bytes, tag: str | None) -> None:
        """Write an object if it still has entity tag `tag` (None: if it is not there): the server compares and swaps.

        Raises:
            StaleGeneration: somebody else wrote it meanwhile.
        """
        self._check_writable()
        try:
            self._obstore.put(self._store, path, data, mode="create" if tag is None else {"e_tag": tag})
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError) as error:
            raise StaleGeneration(f"{self.url}/{path} was written by somebody else meanwhile") from error
        except Exception as error:
            raise self._error(path, error) from error

    def _check_writable(self) -> None:
        if self.url.startswith(("http://", "https://")):  # WebDAV may take a PUT, but none of them compares and swaps
            raise StoreError(f"{self.url} can only be read: plain HTTP knows no conditional writes; use s3://, gs:// or az://")

    def _error(self, path: str, error: Exception) -> StoreError:
        if isinstance(error, (FileNotFoundError, self._errors.NotFoundError)):
            return Missing(f"{self.url}/{path} does not exist; check the URL, or upload the store with `kineflow data push`")
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return StoreError(f"{self.url}/{path}: {first}; check address, credentials (AWS_... variables) and network")


def _with_defaults(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Half a minute of retries instead of three, and plain HTTP where the URL or the endpoint asks for it."""
    plain = url.startswith("http://") or str(options.get("endpoint", "")).startswith("http://")
    defaults: dict[str, Any] = {"retry_config": {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}}
    if plain:
        defaults["client_options"] = {"allow_http": True}
    return {**defaults, **options}
