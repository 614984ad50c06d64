"""Policies across machines: openpi's websocket protocol, both ends."""
