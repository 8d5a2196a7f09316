"""The libraries that a user would pick instead, one module for each.

Every module here has SUBJECTS and imports its library only in `serve` and `drive`; the plan finds them by looking into
this package.
"""
