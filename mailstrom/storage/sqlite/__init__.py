"""The SQLite store: the only place that imports apsw."""
