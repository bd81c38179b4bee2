"""Serves a model: an OpenAI-compatible API and a chat page."""
