"""Serve one base with many adapters, by the HTTP interface of OpenAI: `tsugiki serve`."""
