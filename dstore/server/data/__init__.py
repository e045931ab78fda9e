"""The data folder of a durable Global."""
