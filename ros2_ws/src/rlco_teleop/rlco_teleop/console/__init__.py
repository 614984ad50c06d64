"""The browser operator console: a web server in a thread of its own, and what it shares with the node that hosts it."""
