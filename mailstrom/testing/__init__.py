"""Servers with scripted behaviour for tests and the demo: real sockets, real bytes, on loopback.

Nothing of the engine imports this package. Users may: it is how an application tests its mail
without a mail server.
"""
