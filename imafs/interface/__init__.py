# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The interface of any kernel to user space, pure: files, open rules, requests, profiles."""
