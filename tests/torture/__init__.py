"""Breaking Mailstrom on purpose: faults from outside, and the checker's judgement of what is left.

Nothing in the product knows of any fault. ``inject`` is a folder that a process of ours gets on its
``PYTHONPATH``; its ``sitecustomize`` reads what to do there and arms it before the product loads.
Each part (kills, power cuts, disk errors, ...) is a module with a function that runs a stated
number of cases from a seed and returns ``table.Row`` values. ``test_*.py`` runs the short forms,
``tools/torture`` any of them.
"""
