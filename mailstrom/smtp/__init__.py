"""The sans-IO SMTP room: one grammar for client and server, bytes in and values out.

Nothing here knows a clock, a socket, a random number or a loop; shells outside pump the bytes.
"""
