"""The hostile world: servers, resolvers, networks and input that mean no good.

A group is a module with ``run(plan)``, a generator of ``table.Row``: one row a case, with the
outcome that is wanted, the one that was seen, how long it took and how much memory.
``tools/hostile`` runs the long forms; ``test_*.py`` here run the short ones, and prove that each
group's judge objects.
"""
