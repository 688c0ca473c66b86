"""What a judge remembers: replies that had a verdict, and what was paid. One SQLite file, or memory.

It must not know what a reply means. Invariants: any number of processes of one machine may share a file; a reply is
kept whole or not at all; the sum paid never goes down. (SQLite's locks do not work on every network file system.)
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reward_server.judges.chat_protocol import Reply
from services.contracts.errors import UserError

APPLICATION_ID = 0x7472_6A31
LOCK_TIMEOUT_S = 10.0
TABLES = """
CREATE TABLE IF NOT EXISTS replies
    (key BLOB PRIMARY KEY, text TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payments (judge TEXT PRIMARY KEY, amount REAL NOT NULL) WITHOUT ROWID;
"""


@contextmanager
def open_store(path: Path | None) -> Iterator["Store"]:
    """Open or make the file; None keeps everything in memory.

    Raises:
        UserError: the file cannot be written, or is no such file.
    """
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path or ":memory:", timeout=LOCK_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"the judge's cache {path} cannot be opened: {error}; set judge.cache") from error
    try:
        _prepare(connection, path)
        yield Store(connection)
    finally:
        connection.close()


class Store:
    """An open store."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, key: bytes) -> Reply | None:
        row = self._connection.execute(
            "SELECT text, input_tokens, output_tokens FROM replies WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else Reply(text=row[0], input_tokens=row[1], output_tokens=row[2])

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep a reply; where another process was faster, its reply stays."""
        self._connection.execute(
            "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)",
            (key, reply.text, reply.input_tokens, reply.output_tokens),
        )

    def pay(self, judge: str, amount: float) -> None:
        """Add to what was paid for a judge."""
        self._connection.execute(
            "INSERT INTO payments VALUES (?1, ?2) ON CONFLICT (judge) DO UPDATE SET amount = amount + ?2",
            (judge, amount),
        )

    def paid(self, judge: str) -> float:
        """What was paid for a judge, by every process so far."""
        row = self._connection.execute("SELECT amount FROM payments WHERE judge = ?", (judge,)).fetchone()
        return 0.0 if row is None else float(row[0])


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    try:
        (found,) = connection.execute("PRAGMA application_id").fetchone()
        (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if num_tables and found != APPLICATION_ID:
            raise UserError(f"{path} is a database of something else; set judge.cache to another file")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # Writers do not stop readers, and what a power cut may take is a few replies, not the file.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(TABLES)
    except sqlite3.Error as error:
        raise UserError(f"the judge's cache {path} cannot be used: {error}; set judge.cache to another file") from error
