"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fanin.errors import compose


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A scratch file beside the target, which takes its place at the end; after an error the target is as it was.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "notes.txt") as scratch:
    ...         _ = scratch.write_text("all of it")
    ...     [path.name for path in Path(folder).iterdir()]
    ['notes.txt']
    """
    _require_directory(target)
    scratch = _scratch(target)
    try:
        yield scratch
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def require_writable(target: Path) -> None:
    """Raise, before long work whose outcome is to be written, what would keep it from being written.

    Raises:
        OSError: the target is a directory, or its directory does not exist or takes no new file.
    """
    if target.is_dir():
        raise IsADirectoryError(compose(f"the file {target}, which is a directory", "the name of a file"))
    _require_directory(target)
    try:
        _scratch(target).touch()
        _scratch(target).unlink()
    except OSError as error:
        why = error.strerror or str(error)
        raise type(error)(
            compose(f"the file {target}: {target.absolute().parent} takes no new file", "a place to write to", why)
        ) from None


def _require_directory(target: Path) -> None:
    if not target.absolute().parent.is_dir():
        # Said here, for the system would name the scratch file, which nobody has heard of.
        raise FileNotFoundError(
            compose(
                f"the file {target}: the directory {target.parent} does not exist",
                "a directory that exists",
                instead=f"mkdir -p {target.parent}",
            )
        )


def _scratch(target: Path) -> Path:
    # The suffix stays, for writers that go by it; the process is named, for two may write the same target.
    return target.with_name(f"{target.stem}.{os.getpid()}.part{target.suffix}")
