from __future__ import annotations
class FailureBrowser:
    def __init__(self, *a): pass
    def write(self, *a): pass
