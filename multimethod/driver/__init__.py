"""From a spec to a program: the driver that walks the stages in their order, and what it decides
between them. Also single walks: one call of one method, and the proof that a backend works."""
