"""A client for chat models behind OpenAI's API: requests, cost limit, cache of replies. Imports no jax."""
