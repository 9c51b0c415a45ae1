"""The SMTP server's shell: sockets and time around the dialogue of ``mailstrom.smtp``."""
