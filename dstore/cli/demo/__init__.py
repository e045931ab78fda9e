"""``dstore demo``: one Global and several worker processes that share the files of a folder."""
