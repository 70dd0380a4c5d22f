"""The tables of the store's SQLite file, as migrations from one version to the next.

``user_version`` of the file is the number of migrations that it has seen. A migration is never
changed after it was released; a new one is added at the end.
"""

from __future__ import annotations

APPLICATION_ID = 0x67707473
"""``gpts``: marks a SQLite file as this toolkit's store."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            title TEXT,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            settings TEXT NOT NULL,
            metadata TEXT NOT NULL,
            branched_from TEXT
        ) WITHOUT ROWID""",
        """CREATE INDEX conversations_by_time ON conversations (owner, updated DESC)""",
        # ``text`` is what a person has seen of the message, for the search.
        """CREATE TABLE entries (
            conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
            position INTEGER NOT NULL,
            id TEXT NOT NULL,
            created REAL NOT NULL,
            text TEXT NOT NULL,
            message TEXT NOT NULL,
            vocabulary TEXT,
            call_id TEXT,
            item TEXT,
            PRIMARY KEY (conversation, position),
            UNIQUE (conversation, id)
        ) WITHOUT ROWID""",
        # ``alive_until``: while a background response is made, its maker moves this on.
        """CREATE TABLE responses (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            created REAL NOT NULL,
            previous TEXT,
            body TEXT NOT NULL,
            input TEXT NOT NULL,
            alive_until REAL,
            events BLOB
        ) WITHOUT ROWID""",
        """CREATE INDEX responses_by_time ON responses (created)""",
        """CREATE TABLE response_items (
            owner TEXT NOT NULL,
            id TEXT NOT NULL,
            response TEXT NOT NULL REFERENCES responses ON DELETE CASCADE,
            PRIMARY KEY (owner, id)
        ) WITHOUT ROWID""",
        """CREATE INDEX response_items_by_response ON response_items (response)""",
        """CREATE TABLE rounds (
            id INTEGER PRIMARY KEY,
            created REAL NOT NULL,
            messages TEXT NOT NULL,
            vocabulary TEXT
        )""",
        """CREATE INDEX rounds_by_time ON rounds (created)""",
        """CREATE TABLE round_keys (
            owner TEXT NOT NULL,
            key TEXT NOT NULL,
            round INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
            PRIMARY KEY (owner, key)
        ) WITHOUT ROWID""",
        """CREATE INDEX round_keys_by_round ON round_keys (round)""",
        """CREATE TABLE dates (
            owner TEXT NOT NULL,
            key TEXT NOT NULL,
            created REAL NOT NULL,
            date TEXT NOT NULL,
            PRIMARY KEY (owner, key)
        ) WITHOUT ROWID""",
        """CREATE INDEX dates_by_time ON dates (created)""",
    ),
    (
        """CREATE TABLE attachments (
            conversation TEXT NOT NULL,
            entry TEXT NOT NULL,
            name TEXT NOT NULL,
            data BLOB NOT NULL,
            PRIMARY KEY (conversation, entry, name),
            FOREIGN KEY (conversation, entry) REFERENCES entries (conversation, id)
                ON DELETE CASCADE
        )""",
    ),
)
