"""Who may use a Global: key folders, connect files, and how revocations reach running Globals."""
