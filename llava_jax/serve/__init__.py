"""The server: OpenAI's chat API and a chat page for any model that `load` takes. Needs the extra `serve`."""
