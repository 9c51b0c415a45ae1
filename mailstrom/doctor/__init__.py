"""What ``mailstrom doctor`` looks at: is this installation well, and if not, what is to be done?

``examination`` gathers facts (the spool's from its store, those of the network from a worker
process, the rest here) and hands them to the checks: ``configuration``, ``spool``, ``log``,
``clock``, ``sharing``, ``engine``, ``queue``, ``tls``, ``network``. A check is a pure function of
facts to findings. Nothing here writes to a spool, waits for one, or opens a socket.
"""
