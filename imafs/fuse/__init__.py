# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The FUSE shell: the only room that knows pyfuse3.

A product gives it what a mount shows, through :mod:`imafs.fuse.directory`. A handler must not
await before an open count has changed: RELEASE is asynchronous but arrives in order, and one
await in between gives stale EBUSYs (measured).
"""
