"""The server: OpenAI's routes over one model that lives in a process of its own. It installs with the extra [serve]."""
