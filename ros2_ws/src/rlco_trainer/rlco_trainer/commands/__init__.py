"""The commands of `rlco`, one module a group. Each has add(commands), and imports what it needs only when it runs."""
