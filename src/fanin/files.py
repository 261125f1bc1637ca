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
    if not target.absolute().parent.is_dir():
        # Said here, for the system would name the scratch file, which nobody has heard of.
        raise FileNotFoundError(
            compose(
                f"the file {target}: the directory {target.parent} does not exist",
                "a directory that exists",
                instead=f"mkdir -p {target.parent}",
            )
        )
    # The suffix stays, for writers that go by it; the process is named, for two may write the same target.
    scratch = target.with_name(f"{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield scratch
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
