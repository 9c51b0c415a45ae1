"""Programs that speak SMTP, against our servers: what each does, and whether it arrives whole.

``plan.py`` names the clients, a module each; ``cases.py`` has what they are asked to do,
``station.py`` the servers, ``judge.py`` compares. ``tools/clients`` runs them and writes the table
of docs/clients.md; the test suite runs them all, too.
"""
