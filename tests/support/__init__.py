"""What the tests share: the checker of histories, Debian's programs, sockets and waiting.

Nothing here is shipped. Imported as ``tests.support.NAME``; it may use the installed packages'
public names, and must not reach into a store's tables.
"""
