"""The parent process: spawns, watches, restarts and ends the engine's processes."""
