"""How a record reaches the floors above it: what serves it there is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

_servers: dict[str, str] = {}


def announce(**servers: str) -> None:
    """Say which module serves which records, once it is imported: ``plans="fanin.verification"``."""
    _servers.update(servers)


def establish(records: str) -> None:
    """Import what serves these records, so that its connections are made; nothing when nothing was announced."""
    if records in _servers:
        import_module(_servers[records])
