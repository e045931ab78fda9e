"""Keys: who may use a Global, and what a client needs to reach one that asks for keys."""
