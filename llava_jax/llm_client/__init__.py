"""A client for chat models behind OpenAI's interface: requests, cost limit, cache of replies. No jax."""
