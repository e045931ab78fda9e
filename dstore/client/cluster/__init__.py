"""Several Globals: which of them to ask, and what to do when a partition has moved.

:mod:`.routing` and :mod:`.listing` are pure: the simulation uses them as well. :mod:`.members` has
the Locals of one Node, one for each member of the cluster that it needs.
"""
