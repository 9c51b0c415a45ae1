"""What this user may not look at: a directory on the way to a file is closed.

Such a file looks as if it were missing, and is not. Knows nothing of what files hold.
"""

from __future__ import annotations

import os

from mailstrom.errors import ConfigError


def shut(path: str | os.PathLike[str]) -> bool:
    """Whether nothing can be known of a file, since this user may not look into its directory."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):  # a name that no file can have
        return False
    return False


def require_entered(file: str | os.PathLike[str]) -> None:
    """For a user who named nothing and found nothing: nothing was kept back.

    Behind a directory that only a group may enter there may be a file that names another spool;
    what went into the default one instead would be delivered by nobody.

    Args:
        file: the machine's configuration file, which may be missing.

    Raises:
        ConfigError: its directory is there and closed to this user.
    """
    folder = os.path.dirname(file)
    if os.path.isdir(folder) and not os.access(folder, os.X_OK):
        raise ConfigError(
            f"{folder} cannot be entered by this user, and the configuration in it names the spool:"
            " add the user to its group (mailstrom), or name a spool by MAILSTROM_STORE"
        )
