"""Other queues, measured beside ours: each in a file of its own, behind one Protocol."""
