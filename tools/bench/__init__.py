"""Measurements of Mailstrom and of its peers on one machine, in turn, with one sink.

Run as ``tools/bench/run`` (or ``python -P tools/bench`` with any interpreter that has Mailstrom):
it measures whatever ``mailstrom`` that interpreter imports. Nothing here is part of the product,
and the product knows nothing of it.
"""
